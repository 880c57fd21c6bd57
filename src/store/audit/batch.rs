//! One batch, in one snapshot: whether its counts, units, segments and files agree.

use std::collections::BTreeMap;

use sqlx::FromRow;

use super::lines::{ByKind, ChunkLines};
use super::report::{Audit, count};
use super::window::{Window, next_chunk};
use crate::domain::batch::Status;
use crate::domain::file::Kind;
use crate::domain::usage::Usage;
use crate::store::Result;
use crate::store::batches::{CountsSum, summed};
use crate::store::engine::{Tx, in_tx, sql};
use crate::store::files::decode_sizes;

#[derive(FromRow)]
struct HeadRow {
    status: String,
    total: i64,
    input_file_id: String,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
}

#[derive(FromRow)]
struct FileRow {
    id: String,
    kind: String,
    state: String,
    bytes: i64,
    chunk_sizes: Option<Vec<u8>>,
}

/// What the store says of a batch.
pub(super) struct Head {
    pub id: String,
    status: Status,
    pub total: i64,
    input_file_id: String,
    names: [Option<String>; 2],
    counts: CountsSum,
    files: Vec<FileRow>,
}

/// What is found of it.
#[derive(Default)]
pub(super) struct Found {
    lines: ByKind,
    bytes: ByKind,
    usage: Usage,
    /// Of each kind, the bytes of each chunk.
    sizes: [BTreeMap<i64, i64>; 2],
    /// Requests of its units.
    pub requests: i64,
    /// How many units of each model wait.
    pub waiting: BTreeMap<i64, i64>,
}

const KINDS: [(Kind, usize, &str); 2] = [(Kind::Output, 0, "output"), (Kind::Error, 1, "error")];

impl Head {
    /// Whether the lines of the output (0) or error file (1) must all be stored: until the batch
    /// ends, and from then on for as long as the file is there.
    fn is_whole(&self, place: usize) -> bool {
        !self.status.is_terminal()
            || self.names[place].is_none()
            || self.file(place).is_some_and(|file| file.state == "ready")
    }

    fn file(&self, place: usize) -> Option<&FileRow> {
        let id = self.names[place].as_ref()?;
        self.files.iter().find(|file| file.id == *id)
    }

    fn counted(&self, kind: Kind) -> i64 {
        match kind {
            Kind::Output => self.counts.completed,
            Kind::Error => self.counts.failed + self.counts.cancelled,
        }
    }

    fn runs(&self) -> bool {
        !self.status.is_terminal() && self.status != Status::Validating
    }
}

impl Audit<'_> {
    pub(super) async fn batch(&mut self, id: &str) -> Result<()> {
        let mut tx = self.store.begin_snapshot().await?;
        let Some(head) = self.head(&mut tx, id).await? else {
            return Ok(());
        };
        let mut found = Found::default();
        let mut from = i64::MIN;
        while let Some(first) = next_chunk(&mut tx, id, from).await? {
            let (window, next) = self.window(&mut tx, id, first).await?;
            if head.runs() {
                self.units(&head, &window);
            } else {
                self.chunks(&mut tx, &head, &window.chunks).await?;
            }
            found.add(&window);
            from = next;
            self.progress();
        }
        if head.runs() {
            self.backlog(&mut tx, &head, &found).await?;
        }
        tx.commit().await?;
        self.counts(&head, &found);
        self.made_files(&head, &found);
        self.audited.batches += 1;
        self.audited.live_batches += u64::from(!head.status.is_terminal());
        self.audited.lines += (found.lines.output + found.lines.error) as u64;
        Ok(())
    }

    async fn head(&mut self, tx: &mut Tx, id: &str) -> Result<Option<Head>> {
        let row: Option<HeadRow> = in_tx!(&mut *tx, |c| {
            sqlx::query_as(
                "-- audit_batch
                 SELECT status, total, input_file_id, output_file_id, error_file_id
                 FROM batches WHERE id = $1",
            )
            .bind(id)
            .fetch_optional(c)
            .await?
        });
        let Some(row) = row else { return Ok(None) };
        let Some(status) = Status::parse(&row.status) else {
            self.fault(format!("batch {id}: unknown state {}", row.status));
            return Ok(None);
        };
        let sql = sql!(
            "-- audit_counts
             SELECT {summed}
             FROM batches LEFT JOIN batch_counts ON batch_counts.batch_id = batches.id
             WHERE batches.id = $1 GROUP BY batches.id",
            summed = summed()
        );
        let counts: CountsSum = in_tx!(&mut *tx, |c| {
            sqlx::query_as(sql).bind(id).fetch_one(c).await?
        });
        let files: Vec<FileRow> = in_tx!(&mut *tx, |c| {
            sqlx::query_as(
                "-- audit_made_files
                 SELECT id, COALESCE(kind, '') AS kind, state, bytes, chunk_sizes FROM files
                 WHERE batch_id = $1",
            )
            .bind(id)
            .fetch_all(c)
            .await?
        });
        Ok(Some(Head {
            id: id.to_owned(),
            status,
            total: row.total,
            input_file_id: row.input_file_id,
            names: [row.output_file_id, row.error_file_id],
            counts,
            files,
        }))
    }

    /// Chunks of a batch that has ended: each as the input has it, where that is still there.
    async fn chunks(
        &mut self,
        tx: &mut Tx,
        head: &Head,
        chunks: &BTreeMap<i64, ChunkLines>,
    ) -> Result<()> {
        let whole = KINDS.iter().all(|&(_, place, _)| head.is_whole(place));
        let (Some((&first, _)), Some((&last, _)), true) =
            (chunks.first_key_value(), chunks.last_key_value(), whole)
        else {
            return Ok(());
        };
        let requests: Vec<(i64, i64)> = in_tx!(tx, |c| {
            sqlx::query_as(
                "-- audit_requests
                 SELECT chunk_no, CAST(SUM(requests) AS BIGINT) FROM chunk_models m
                 WHERE file_id = $1 AND chunk_no >= $2 AND chunk_no <= $3
                    AND EXISTS (SELECT 1 FROM files f WHERE f.id = $1 AND f.state = 'ready')
                 GROUP BY chunk_no
                 UNION ALL
                 SELECT CAST(0 AS BIGINT), requests FROM files
                 WHERE id = $1 AND state = 'ready' AND is_one_chunk = 1 AND $2 <= 0 AND $3 >= 0",
            )
            .bind(&head.input_file_id)
            .bind(first)
            .bind(last)
            .fetch_all(c)
            .await?
        });
        let requests: BTreeMap<i64, i64> = requests.into_iter().collect();
        for (chunk, lines) in chunks {
            let found = lines.lines.output + lines.lines.error;
            if let Some(requests) = requests.get(chunk).filter(|&&requests| requests != found) {
                self.fault(format!(
                    "batch {}: chunk {chunk} has {requests} requests and {}",
                    head.id,
                    count(found, "line")
                ));
            }
            for (model, unit) in &lines.units {
                if !unit.is_contiguous() {
                    self.fault(format!(
                        "batch {}: flush numbers of {chunk}/{model} have a gap: {:?}",
                        head.id, unit.flushes
                    ));
                }
            }
        }
        Ok(())
    }

    fn counts(&mut self, head: &Head, found: &Found) {
        let CountsSum {
            completed,
            failed,
            cancelled,
            ..
        } = head.counts;
        let id = &head.id;
        let all = completed + failed + cancelled;
        let ended = head.status.is_terminal();
        if all > head.total || ended && all != head.total {
            self.fault(format!(
                "batch {id}: {} of {} requests are counted ({completed} completed, {failed} \
                 failed, {cancelled} cancelled), and it is {}",
                all, head.total, head.status
            ));
        }
        for (kind, place, name) in KINDS {
            let (counted, lines) = (head.counted(kind), found.lines.of(kind));
            if lines > counted || head.is_whole(place) && lines != counted {
                self.fault(format!(
                    "batch {id}: {counted} are counted, but its segments have {} of {name}",
                    count(lines, "line")
                ));
            }
        }
        let whole = KINDS.iter().all(|&(_, place, _)| head.is_whole(place));
        let says = head.counts.usage();
        if whole && says != found.usage {
            self.fault(format!(
                "batch {id}: its usage is {says:?}, that of its answers {:?}",
                found.usage
            ));
        }
    }

    /// The output and the error file.
    fn made_files(&mut self, head: &Head, found: &Found) {
        let id = &head.id;
        for file in &head.files {
            if !head.names.iter().flatten().any(|name| *name == file.id) {
                self.fault(format!(
                    "file {}: it is the {} file of batch {id}, which does not name it",
                    file.id, file.kind
                ));
            }
        }
        for (kind, place, name) in KINDS {
            let Some(named) = &head.names[place] else {
                if head.status.is_terminal() && head.counted(kind) > 0 {
                    self.fault(format!(
                        "batch {id}: it is {} and has lines, but no {name} file",
                        head.status
                    ));
                }
                continue;
            };
            let Some(file) = head.file(place) else {
                self.fault(format!("batch {id}: its {name} file {named} is not there"));
                continue;
            };
            if file.state != "ready" {
                continue;
            }
            if file.bytes != found.bytes.of(kind) {
                self.fault(format!(
                    "file {named}: it has {} bytes, its lines {}",
                    file.bytes,
                    found.bytes.of(kind)
                ));
            }
            let sizes = decode_sizes(file.chunk_sizes.as_deref().unwrap_or_default());
            let sizes: Option<BTreeMap<i64, i64>> = sizes.map(|s| s.into_iter().collect());
            if sizes.as_ref() != Some(&found.sizes[place]) {
                self.fault(format!(
                    "file {named}: its table of chunks is not that of its lines"
                ));
            }
        }
    }
}

impl Found {
    fn add(&mut self, window: &Window) {
        for (&chunk, lines) in &window.chunks {
            for (kind, place, _) in KINDS {
                self.lines.add(kind, lines.lines.of(kind));
                self.bytes.add(kind, lines.bytes.of(kind));
                if lines.bytes.of(kind) > 0 {
                    self.sizes[place].insert(chunk, lines.bytes.of(kind));
                }
            }
        }
        for unit in &window.units {
            let waiting = self.waiting.entry(unit.model_no).or_default();
            *waiting += i64::from(unit.state == "waiting");
            self.requests += unit.requests;
        }
        self.usage += window.usage;
    }
}
