//! Looks the whole store over for what must never be: reads only, holds little, and may run
//! beside a server.
//!
//! What a transaction changes together is read in one snapshot (a batch), or by one statement
//! (rows that belong to nothing), so that nothing is taken for a fault that is merely in motion.
//! What a duty will have mended in a moment (the units of a process that died, what is to be
//! removed) is a fault only if servers run and do not mend it.

mod batch;
mod files;
mod lines;
mod motion;
mod orphans;
mod running;
mod window;

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::engine::{Connection, Tx, Writing, lent, on, within};
use super::{Result, Store};

/// Batches, or files, that are listed at once.
const PAGE: i64 = 100;
const LIST_BATCHES: &str = "-- audit_batches
    SELECT id FROM batches WHERE id > $1 AND created_at <= $2
    ORDER BY id LIMIT $3";
/// Faults of a SQLite file's pages that are told.
const PAGE_FAULTS_MAX: u32 = 20;
/// A statement may run longer here than elsewhere on Postgres: nobody waits for it.
const STATEMENT_TIMEOUT: Duration = Duration::from_mins(10);

/// What an audit must know of the servers.
#[derive(Clone, Copy, Debug)]
pub struct AuditSettings {
    /// How long their leases last.
    pub lease: Duration,
    /// How long the bytes of a hidden file stay.
    pub grace: Duration,
}

/// What an audit tells while it works.
#[derive(Clone, Debug)]
pub enum Told {
    /// Something must not be.
    Fault(String),
    /// Something waits for a server to mend it, and need not be looked into.
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

/// Hears what an audit tells.
pub type Tell<'a> = dyn FnMut(Told) + Send + 'a;

struct Audit<'a> {
    store: &'a Store,
    settings: AuditSettings,
    tell: &'a mut Tell<'a>,
    audited: Audited,
    /// When it began, in milliseconds: what is younger is not looked at.
    began: i64,
}

impl Store {
    /// Looks at everything that is stored, and tells each fault as it is found. Changes nothing.
    /// Where units are held by a process that is gone although others run, it waits for two
    /// leases, to see whether they take them over.
    ///
    /// # Errors
    /// When the database fails. That what is stored cannot be read is a fault, and no error.
    pub async fn audit<'a>(
        &'a self,
        settings: AuditSettings,
        tell: &'a mut Tell<'a>,
    ) -> Result<Audited> {
        let mut audit = Audit {
            store: self,
            settings,
            tell,
            audited: Audited::default(),
            began: self.now_ms(),
        };
        audit.pages().await?;
        let strays = audit.strays().await?;
        audit.orphans().await?;
        audit.files().await?;
        audit.batches().await?;
        audit.overdue().await?;
        audit.still_stray(strays).await?;
        audit.sizes().await?;
        Ok(audit.audited)
    }

    /// A transaction that reads, and sees all tables as they are at its first statement.
    async fn snapshot(&self) -> Result<Tx> {
        Ok(match self.reader() {
            Connection::Sqlite(pool) => Tx::Sqlite(Writing::snapshot(pool).await?),
            Connection::Postgres(database) => {
                Tx::Postgres(database.snapshot(STATEMENT_TIMEOUT).await?)
            }
        })
    }
}

impl Audit<'_> {
    fn fault(&mut self, text: String) {
        self.audited.faults += 1;
        (self.tell)(Told::Fault(text));
    }

    fn waits(&mut self, text: String) {
        (self.tell)(Told::Waits(text));
    }

    fn progress(&mut self) {
        (self.tell)(Told::Progress(self.audited));
    }

    /// The next ids that a statement lists: of what was there when the audit began.
    async fn page(&self, sql: &'static str, after: &str) -> Result<Vec<String>> {
        Ok(on!(self.store.reader(), c => {
            sqlx::query_scalar(sql).bind(after).bind(self.began).bind(PAGE).fetch_all(c).await?
        }))
    }

    async fn batches(&mut self) -> Result<()> {
        let mut after = String::new();
        loop {
            let ids = self.page(LIST_BATCHES, &after).await?;
            let Some(last) = ids.last() else {
                return Ok(());
            };
            after.clone_from(last);
            for id in &ids {
                self.batch(id).await?;
                self.progress();
            }
        }
    }

    /// Whether the pages and the indexes of a SQLite file fit each other. They do not where two
    /// processes have written to the file by different names.
    async fn pages(&mut self) -> Result<()> {
        let Connection::Sqlite(pool) = self.store.reader() else {
            return Ok(());
        };
        let sql = format!("PRAGMA integrity_check({PAGE_FAULTS_MAX})");
        let told: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_all(pool)
            .await?;
        let is_cut_short = told.len() >= PAGE_FAULTS_MAX as usize;
        for fault in told.into_iter().filter(|fault| fault != "ok") {
            self.fault(format!("the database file: {}", fault.replace('\n', " ")));
        }
        if is_cut_short {
            self.fault("the database file: perhaps more of them".to_owned());
        }
        Ok(())
    }

    async fn sizes(&mut self) -> Result<()> {
        let (total, free) = match self.store.reader() {
            Connection::Sqlite(pool) => {
                let pragma = async |sql: &'static str| -> Result<i64> {
                    let (number,): (i64,) = sqlx::query_as(sql).fetch_one(pool).await?;
                    Ok(number)
                };
                let page = pragma("PRAGMA page_size").await?;
                let pages = pragma("PRAGMA page_count").await?;
                let free = pragma("PRAGMA freelist_count").await?;
                (pages * page, free * page)
            }
            Connection::Postgres(pool) => {
                let sql = "-- audit_size\nSELECT pg_database_size(current_database())";
                let mut lent = pool.lend().await?;
                let (bytes,): (i64,) =
                    lent!(&mut lent, c => sqlx::query_as(sql).fetch_one(c).await?);
                lent.done().await?;
                (bytes, 0)
            }
        };
        self.audited.database_bytes = total as u64;
        self.audited.free_bytes = free as u64;
        Ok(())
    }
}

/// A number with its noun: `1 unit`, `2 units`.
fn count(number: impl Into<i64>, noun: &str) -> String {
    match number.into() {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    }
}
