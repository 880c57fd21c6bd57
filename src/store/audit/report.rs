//! What an audit knows and what it reports.

use std::time::Duration;

use crate::store::engine::on_pool;
use crate::store::{Result, Store};

/// Batches, or files, that are listed at once.
const PAGE: i64 = 100;

/// What an audit must know of the servers.
#[derive(Clone, Copy, Debug)]
pub struct AuditSettings {
    /// How long their leases last.
    pub lease: Duration,
    /// How long the bytes of a hidden file stay.
    pub grace: Duration,
}

/// What an audit reports while it works.
#[derive(Clone, Debug)]
pub enum AuditFinding {
    /// Something must not be.
    Fault(String),
    /// Something waits for a server to repair it. Nobody need look into it.
    Waits(String),
    /// It has got this far.
    Progress(Audited),
}

/// What was looked at. Bytes are raw; `stored` ones are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Uploaded files that have their content.
    pub files: u64,
    pub file_bytes: u64,
    pub file_bytes_stored: u64,
    pub batches: u64,
    /// Those that have not ended.
    pub live_batches: u64,
    /// Lines that are done.
    pub lines: u64,
    pub segments: u64,
    pub segment_bytes: u64,
    pub segment_bytes_stored: u64,
    /// Units of live batches.
    pub units: u64,
    pub faults: u64,
    /// What the database takes on disk, and how much of it is free for new rows (on SQLite; 0
    /// where it is not known).
    pub database_bytes: u64,
    pub free_bytes: u64,
}

/// Receives what an audit reports.
pub type AuditReporter<'a> = dyn FnMut(AuditFinding) + Send + 'a;

pub(super) struct Audit<'a> {
    pub(super) store: &'a Store,
    pub(super) settings: AuditSettings,
    pub(super) reporter: &'a mut AuditReporter<'a>,
    pub(super) audited: Audited,
    /// When it began, in milliseconds: what is younger is not looked at.
    pub(super) began: i64,
}

impl Audit<'_> {
    pub(super) fn fault(&mut self, text: String) {
        self.audited.faults += 1;
        (self.reporter)(AuditFinding::Fault(text));
    }

    pub(super) fn waits(&mut self, text: String) {
        (self.reporter)(AuditFinding::Waits(text));
    }

    pub(super) fn progress(&mut self) {
        (self.reporter)(AuditFinding::Progress(self.audited));
    }

    /// The next ids that a statement lists: of what was there when the audit began.
    pub(super) async fn page(&self, sql: &'static str, after: &str) -> Result<Vec<String>> {
        Ok(on_pool!(self.store.reader(), |c| {
            sqlx::query_scalar(sql)
                .bind(after)
                .bind(self.began)
                .bind(PAGE)
                .fetch_all(c)
                .await?
        }))
    }
}

/// A number with its noun: `1 unit`, `2 units`.
pub(super) fn count(number: impl Into<i64>, noun: &str) -> String {
    match number.into() {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    }
}
