//! What this room's tests need: a store in a temporary directory, files in it, and batches whose
//! answers are made up.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;

use super::{Error, Finish, Ingest, UploadBudget, content};
use crate::codec::segment::{self, Line};
use crate::domain::clock::Clock;
use crate::domain::endpoint::Endpoints;
use crate::domain::file::{Kind, Purpose};
use crate::domain::id;
use crate::domain::unit::Bitmap;
use crate::intake::{Contents, Limits};
use crate::store::{CountsDelta, LeasedUnit, NewBatch, Replica, Store, StoredFile, UnitFlush};

pub const TENANT: &str = "tenant";
pub const LIMITS: Limits = Limits {
    max_line_bytes: 3 << 20,
    max_models: 100,
    endpoints: Endpoints::USUAL,
};

pub struct TestStore {
    pub store: Store,
    pub clock: Clock,
    pub budget: Arc<UploadBudget>,
    /// The segments of this chunk are written with tables that cannot be read.
    pub damaged_chunk: Option<i64>,
    _directory: tempfile::TempDir,
}

impl TestStore {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("test.db").display());
        let clock = Clock::default();
        Self {
            store: Store::open(&url, 1, clock.clone()).await.unwrap(),
            clock,
            budget: UploadBudget::new(LIMITS.max_line_bytes),
            damaged_chunk: None,
            _directory: directory,
        }
    }

    pub fn finish(&self, purpose: Purpose) -> Finish {
        Finish {
            purpose,
            filename: "a.jsonl".to_owned(),
            created_at: self.clock.now_ms(),
            expires_at: None,
        }
    }

    /// Begins a file of a tenant.
    pub fn begin_as(&self, tenant: &str, contents: Contents) -> Ingest {
        Ingest::begin(&self.store, tenant, LIMITS, contents, &self.budget)
    }

    /// Writes a file in pieces of the given lengths, over and over.
    pub async fn ingest(
        &self,
        purpose: Purpose,
        bytes: &[u8],
        pieces: &[usize],
    ) -> Result<StoredFile, Error> {
        let contents = match purpose {
            Purpose::Batch => Contents::Requests,
            _ => Contents::Opaque,
        };
        let mut ingest = self.begin_as(TENANT, contents);
        let mut rest = Bytes::copy_from_slice(bytes);
        for &length in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            ingest
                .write(rest.split_to(length.clamp(1, rest.len())))
                .await?;
        }
        ingest.finish(self.finish(purpose), None).await
    }

    pub async fn read(&self, file: &StoredFile, range: Range<u64>) -> Vec<u8> {
        let blocks: Vec<Bytes> = content(&self.store, file, range)
            .try_collect()
            .await
            .unwrap();
        blocks.concat()
    }

    pub async fn read_whole(&self, file: &StoredFile) -> Vec<u8> {
        self.read(file, 0..file.bytes as u64).await
    }

    /// Runs a batch whose lines name the models given by number, and are answered as given:
    /// each unit's in as many flushes as there are different flush numbers.
    pub async fn run_batch(&self, answers: &[Answer]) -> [Option<StoredFile>; 2] {
        let lines: String = (0..)
            .zip(answers)
            .map(|(number, answer)| request(&number.to_string(), answer.model))
            .collect();
        let input = self
            .ingest(Purpose::Batch, lines.as_bytes(), &[1000])
            .await
            .unwrap();
        let batch_id = id::batch();
        let now = self.clock.now_ms();
        let batch = NewBatch {
            id: batch_id.clone(),
            tenant: TENANT.to_owned(),
            key_id: None,
            endpoint: "/v1/embeddings".to_owned(),
            input_file_id: input.id.clone(),
            task: None,
            reuse: None,
            details: false,
            completion_window: "24h".to_owned(),
            output_expires_seconds: 3600,
            metadata: None,
            created_at: now,
            expires_at: None,
            steering: crate::store::Steering::default(),
        };
        let store = &self.store;
        store.create_batch(&batch, None).await.unwrap();
        let unvalidated = store.unvalidated().await.unwrap().remove(0);
        let models = unvalidated.input.as_ref().unwrap().models.len();
        assert!(store.accept_batch(&unvalidated, None).await.unwrap());
        let replica = Replica {
            token: "me".to_owned(),
            name: "me".to_owned(),
            lease_ms: 60_000,
            beat_ms: 1000,
        };
        store.join(&replica, None).await.unwrap();
        for model_no in 0..models {
            let model_no = i64::try_from(model_no).unwrap();
            for unit in store
                .lease_units("me", &batch_id, model_no, 1000)
                .await
                .unwrap()
            {
                self.run_unit(&input.id, unit, answers).await;
            }
        }
        store.finalize_batch(&batch_id).await.unwrap();
        let row = store.batch(TENANT, &batch_id).await.unwrap().unwrap().row;
        let mut files = [None, None];
        for (file, id) in files
            .iter_mut()
            .zip([row.output_file_id, row.error_file_id])
        {
            if let Some(id) = id {
                *file = store.file(TENANT, &id).await.unwrap();
            }
        }
        files
    }

    async fn run_unit(&self, file_id: &str, unit: LeasedUnit, answers: &[Answer]) {
        let chunk = self
            .store
            .chunk(file_id, unit.lease.key.chunk_no)
            .await
            .unwrap()
            .unwrap();
        let count = chunk.bytes.iter().filter(|&&byte| byte == b'\n').count();
        let first = usize::try_from(chunk.first_line - 1).unwrap();
        // Models are numbered in the order in which the file names them.
        let mut seen: Vec<u8> = Vec::new();
        for answer in answers {
            if !seen.contains(&answer.model) {
                seen.push(answer.model);
            }
        }
        let model = seen[usize::try_from(unit.lease.key.model_no).unwrap()];
        let mut flushes: BTreeMap<u8, Vec<Line>> = BTreeMap::new();
        for (line, answer) in (0..).zip(&answers[first..first + count]) {
            if answer.model == model {
                flushes.entry(answer.flush).or_default().push(Line {
                    line,
                    kind: answer.kind,
                    bytes: answer.bytes.clone(),
                });
            }
        }
        let mut done = Bitmap::default();
        let last = flushes.len() - 1;
        for (nth, lines) in flushes.into_values().enumerate() {
            for line in &lines {
                assert!(done.insert(line.line));
            }
            let mut segment = segment::encode(&lines).unwrap();
            if self.damaged_chunk == Some(unit.lease.key.chunk_no) {
                segment.entries = vec![0xff];
            }
            let flush = UnitFlush {
                lease: unit.lease.clone(),
                flush_no: unit.flush_no + nth as i64,
                done: done.clone(),
                finished: nth == last,
                ends_batch: false,
                cleared: true,
                tail: None,
                segment: Some(segment),
                closed_tail: None,
                output_bytes: bytes_of(&lines, Kind::Output),
                error_bytes: bytes_of(&lines, Kind::Error),
                counts: CountsDelta::default(),
                usage: Vec::new(),
            };
            let reply = self.store.flush("me", 0, &[&flush]).await.unwrap();
            assert_eq!(reply.accepted.len(), 1);
        }
    }
}

/// What a line of a made-up batch is answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub model: u8,
    pub flush: u8,
    pub kind: Kind,
    /// With the line end.
    pub bytes: Vec<u8>,
}

/// What the file of a kind must be.
pub fn merged(answers: &[Answer], kind: Kind) -> Vec<u8> {
    let of_kind = answers.iter().filter(|answer| answer.kind == kind);
    of_kind.flat_map(|answer| answer.bytes.clone()).collect()
}

fn bytes_of(lines: &[Line], kind: Kind) -> i64 {
    let of_kind = lines.iter().filter(|line| line.kind == kind);
    of_kind.map(|line| line.bytes.len() as i64).sum()
}

/// A line of an input file.
pub fn request(custom_id: &str, model: u8) -> String {
    format!(
        "{{\"custom_id\":\"{custom_id}\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\
         \"body\":{{\"model\":\"m{model}\",\"input\":\"text\"}}}}\n"
    )
}

/// Bytes that cannot be compressed, the same for the same seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    std::iter::repeat_with(|| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(length)
    .collect()
}
