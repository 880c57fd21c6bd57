//! What this room's tests need: a unit in hand, of which no store knows.

use std::sync::Arc;

use crate::domain::endpoint::ENDPOINTS;
use crate::domain::unit::{Bitmap, UnitKey, UnitLease};
use crate::metrics::metrics;
use crate::store::{Deaths, LeasedUnit};
use crate::worker::work::line::OpenLine;
use crate::worker::work::unit::{BatchContext, LoadedUnit};

/// A unit of so many lines with which so many owners died, and of which this line was recorded
/// last.
pub fn unit(
    requests: u32,
    owners: i64,
    recorded_line: Option<i64>,
) -> (Arc<LoadedUnit>, Vec<OpenLine>) {
    unit_of(1, batch(), leased(requests, owners, recorded_line))
}

pub fn batch() -> BatchContext {
    BatchContext {
        id: "batch".into(),
        tenant: "tenant".into(),
        key_id: Arc::default(),
        endpoint: &ENDPOINTS[0],
        file_id: "file".into(),
        task: None,
        reuse: None,
        details: false,
        priority: 0,
        deadline: i64::MAX,
        created_at: 0,
        total: i64::MAX,
        number: 0,
    }
}

/// A unit of any batch.
pub fn unit_of(
    id: u64,
    batch: BatchContext,
    leased: LeasedUnit,
) -> (Arc<LoadedUnit>, Vec<OpenLine>) {
    unit_on(id, Arc::new(batch), leased)
}

/// The same.
pub fn unit_on(
    id: u64,
    batch: Arc<BatchContext>,
    leased: LeasedUnit,
) -> (Arc<LoadedUnit>, Vec<OpenLine>) {
    let text: String = (0..leased.requests)
        .map(|line| {
            let path = ENDPOINTS[0].path;
            format!("{{\"custom_id\":\"id-{line}\",\"method\":\"POST\",\"url\":\"{path}\",\"body\":{{}}}}\n")
        })
        .collect();
    let (unit, lines) = LoadedUnit::load(
        id,
        leased,
        ("model", metrics().model("model")),
        batch,
        text.into_bytes(),
        None,
    );
    (Arc::new(unit), lines)
}

/// The same as the store would lease it, no line done.
pub fn leased(requests: u32, owners: i64, recorded_line: Option<i64>) -> LeasedUnit {
    LeasedUnit {
        lease: UnitLease {
            key: UnitKey {
                batch_id: "batch".to_owned(),
                chunk_no: 0,
                model_no: 0,
            },
            epoch: 1,
        },
        flush_no: 0,
        requests: i64::from(requests),
        chunk_bytes: 100,
        deaths: Deaths {
            owners,
            recorded_line,
            alone: 0,
        },
        done: Bitmap::default(),
        tail: None,
    }
}
