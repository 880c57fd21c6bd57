//! The units and the backlog of a batch that runs, beside its segments and tails.

use std::collections::BTreeMap;

use super::batch::{Found, Head};
use super::lines::{ChunkLines, UnitLines};
use super::report::{Audit, count};
use super::window::{UnitRow, Window};
use crate::store::Result;
use crate::store::engine::{Tx, in_tx};

impl Audit<'_> {
    /// Units of a batch that runs, beside their lines.
    pub(super) fn units(&mut self, head: &Head, window: &Window) {
        let mut units: BTreeMap<(i64, i64), &UnitRow> = BTreeMap::new();
        for unit in &window.units {
            units.insert((unit.chunk_no, unit.model_no), unit);
            let none = ChunkLines::default();
            let chunk = window.chunks.get(&unit.chunk_no).unwrap_or(&none);
            if let Some(fault) = unit_fault(unit, chunk) {
                let (chunk, model) = (unit.chunk_no, unit.model_no);
                self.fault(format!("batch {}: unit {chunk}/{model}: {fault}", head.id));
            }
        }
        for (chunk, lines) in &window.chunks {
            for model in lines.units.keys() {
                if !units.contains_key(&(*chunk, *model)) {
                    self.fault(format!(
                        "batch {}: segments of {chunk}/{model}, which is no unit of it",
                        head.id
                    ));
                }
            }
        }
        self.audited.units += window.units.len() as u64;
    }

    /// The backlog has a row for each model of which units have waited, with as many units as wait
    /// now.
    pub(super) async fn backlog(&mut self, tx: &mut Tx, head: &Head, found: &Found) -> Result<()> {
        let rows: Vec<(i64, i64)> = in_tx!(tx, |c| {
            sqlx::query_as(
                "-- audit_backlog\nSELECT model_no, waiting FROM backlog WHERE batch_id = $1",
            )
            .bind(&head.id)
            .fetch_all(c)
            .await?
        });
        let rows: BTreeMap<i64, i64> = rows.into_iter().collect();
        for (model, waiting) in &found.waiting {
            match rows.get(model) {
                // All its units were leased directly.
                None if *waiting == 0 => {}
                None => self.fault(format!(
                    "batch {}: no row in the backlog for model {model}",
                    head.id
                )),
                Some(says) if says != waiting => self.fault(format!(
                    "batch {}: the backlog says that {says} units of model {model} wait, and \
                     {waiting} do",
                    head.id
                )),
                Some(_) => {}
            }
        }
        for model in rows
            .keys()
            .filter(|model| !found.waiting.contains_key(model))
        {
            self.fault(format!(
                "batch {}: a row in the backlog for model {model}, which has no units",
                head.id
            ));
        }
        if found.requests != head.total {
            self.fault(format!(
                "batch {}: it has {} requests, its units {}",
                head.id, head.total, found.requests
            ));
        }
        Ok(())
    }
}

/// In what a unit differs from its lines.
fn unit_fault(unit: &UnitRow, chunk: &ChunkLines) -> Option<String> {
    let none = UnitLines::default();
    let lines = chunk.units.get(&unit.model_no).unwrap_or(&none);
    let done = i64::from(lines.done.count());
    if !unit.is_done_as(&lines.done) {
        return Some(format!(
            "its bitmap is not that of the {} in its segments and its tail",
            count(done, "line")
        ));
    }
    if !lines.is_contiguous() || lines.flushes.len() as i64 != unit.flush_no {
        return Some(format!(
            "it was flushed {} times, its lines are of the flushes {:?}",
            unit.flush_no, lines.flushes
        ));
    }
    if done > unit.requests || (unit.state == "done") != (done == unit.requests) {
        return Some(format!(
            "it is {} with {done} of {} requests done",
            unit.state, unit.requests
        ));
    }
    if (unit.output_bytes, unit.error_bytes) != (lines.bytes.output, lines.bytes.error) {
        return Some(format!(
            "it has {} bytes of output and {} of errors, its lines {} and {}",
            unit.output_bytes, unit.error_bytes, lines.bytes.output, lines.bytes.error
        ));
    }
    None
}
