//! An audit from its beginning to its end.

use super::report::{Audit, AuditReporter, AuditSettings, Audited};
use crate::store::engine::{Connection, on_checkout, sql};
use crate::store::{Result, Store};

const LIST_BATCHES: &str = "-- audit_batches
    SELECT id FROM batches WHERE id > $1 AND created_at <= $2
    ORDER BY id LIMIT $3";
/// How many faults of a SQLite file's pages are reported.
const PAGE_FAULTS_MAX: u32 = 20;

impl Store {
    /// Looks at everything that is stored, and reports each fault as it is found. Changes nothing.
    /// Where units are held by a process that is gone although others run, it waits for two
    /// leases, to see whether they take them over.
    ///
    /// # Errors
    /// When the database fails. That what is stored cannot be read is a fault, and no error.
    pub async fn audit<'a>(
        &'a self,
        settings: AuditSettings,
        reporter: &'a mut AuditReporter<'a>,
    ) -> Result<Audited> {
        let mut audit = Audit {
            store: self,
            settings,
            reporter,
            audited: Audited::default(),
            began: self.now_ms(),
        };
        audit.pages().await?;
        let abandoned = audit.abandoned().await?;
        audit.orphans().await?;
        audit.files().await?;
        audit.batches().await?;
        audit.overdue().await?;
        audit.still_abandoned(abandoned).await?;
        audit.sizes().await?;
        Ok(audit.audited)
    }
}

impl Audit<'_> {
    /// Audits each batch that was there when the audit began, a page of ids at a time.
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
        let sql = sql!(
            "PRAGMA integrity_check({page_faults_max})",
            page_faults_max = PAGE_FAULTS_MAX
        );
        let told: Vec<String> = sqlx::query_scalar(sql).fetch_all(pool).await?;
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
                let mut checkout = pool.checkout().await?;
                let (bytes,): (i64,) =
                    on_checkout!(&mut checkout, |c| sqlx::query_as(sql).fetch_one(c).await?);
                checkout.done().await?;
                (bytes, 0)
            }
        };
        self.audited.database_bytes = total as u64;
        self.audited.free_bytes = free as u64;
        Ok(())
    }
}
