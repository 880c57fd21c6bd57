//! Reading batches: one, a page of a tenant's, their states and their counts.

use std::collections::{BTreeSet, HashMap};

use sqlx::FromRow;

use super::batch::{Batch, BatchRow, COLUMNS, CountsSum, summed};
use super::state;
use crate::domain::batch::BatchState;
use crate::store::engine::{Sql, Tx, bind_each, in_tx, list, on_pool, sql};
use crate::store::{Error, Page, Result, Store};

/// Selects the batches with these ids, in parentheses, with the sums of their counts, the
/// newest first. One statement reads both, so that a batch that is shown as completed is shown with
/// all its lines.
fn select(name: &'static str, ids: Sql) -> Sql {
    sql!(
        "-- {name}
         SELECT {columns}, {summed}
         FROM batches LEFT JOIN batch_counts ON batch_counts.batch_id = batches.id
         WHERE batches.id IN {ids}
         GROUP BY batches.id ORDER BY batches.created_at DESC, batches.id DESC",
        name,
        columns = COLUMNS,
        summed = summed(),
        ids
    )
}

/// A row of [`select`].
#[derive(FromRow)]
struct SelectedRow {
    #[sqlx(flatten)]
    batch: BatchRow,
    #[sqlx(flatten)]
    counts: CountsSum,
}

impl TryFrom<SelectedRow> for Batch {
    type Error = Error;

    fn try_from(selected: SelectedRow) -> Result<Self> {
        let SelectedRow { batch, counts } = selected;
        Ok(Batch {
            state: state::from_columns(&batch.status, batch.ending.as_deref())?,
            counts: counts.counts(batch.total),
            usage: counts.usage(),
            row: batch,
        })
    }
}

impl Store {
    /// A tenant's batch.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn batch(&self, tenant: &str, id: &str) -> Result<Option<Batch>> {
        let sql = select(
            "batch",
            sql!("(SELECT id FROM batches WHERE id = $1 AND tenant = $2)"),
        );
        let row: Option<SelectedRow> = on_pool!(self.reader(), |c| {
            sqlx::query_as(sql)
                .bind(id)
                .bind(tenant)
                .fetch_optional(c)
                .await?
        });
        row.map(Batch::try_from).transpose()
    }

    /// Batches by their tenants and ids. Those that are not there are left out.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn batches_of(
        &self,
        wanted: &[(String, String)],
    ) -> Result<HashMap<(String, String), Batch>> {
        let found = match wanted {
            [] => Vec::new(),
            [(tenant, id)] => self.batch(tenant, id).await?.into_iter().collect(),
            _ => {
                let sql = select("batches_of", list(1, wanted.len()));
                let ids = wanted.iter().map(|(_, id)| id);
                let rows: Vec<SelectedRow> = on_pool!(self.reader(), |c| {
                    let read = sqlx::query_as(sql).persistent(false);
                    bind_each!(read, ids).fetch_all(c).await?
                });
                let batches = rows.into_iter().map(Batch::try_from);
                batches.collect::<Result<_>>()?
            }
        };
        let key = |batch: &Batch| (batch.row.tenant.clone(), batch.row.id.clone());
        Ok(found.into_iter().map(|one| (key(&one), one)).collect())
    }

    /// The tenant that a batch belongs to.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owner_of_batch(&self, id: &str) -> Result<Option<String>> {
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_scalar("-- owner_of_batch\nSELECT tenant FROM batches WHERE id = $1")
                .bind(id)
                .fetch_optional(c)
                .await?
        }))
    }

    /// Where in its tenant's list a batch stands.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn batch_position(&self, tenant: &str, id: &str) -> Result<Option<(i64, String)>> {
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- batch_position
                 SELECT created_at, id FROM batches WHERE id = $1 AND tenant = $2",
            )
            .bind(id)
            .bind(tenant)
            .fetch_optional(c)
            .await?
        }))
    }

    /// A page of a tenant's batches, newest first, behind the position `after`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn batches(
        &self,
        tenant: &str,
        after: Option<(i64, String)>,
        limit: i64,
    ) -> Result<Page<Batch>> {
        let (created_at, id) = after.unwrap_or((i64::MAX, "~".to_owned()));
        let sql = select(
            "batches",
            sql!(
                "(SELECT id FROM batches WHERE tenant = $1 AND (created_at, id) < ($2, $3)
                  ORDER BY created_at DESC, id DESC LIMIT $4)"
            ),
        );
        let rows: Vec<SelectedRow> = on_pool!(self.reader(), |c| {
            sqlx::query_as(sql)
                .bind(tenant)
                .bind(created_at)
                .bind(id)
                .bind(limit + 1)
                .fetch_all(c)
                .await?
        });
        let page = Page::cut(rows, limit);
        let items = page.items.into_iter().map(Batch::try_from);
        Ok(Page {
            items: items.collect::<Result<_>>()?,
            more: page.more,
        })
    }

    /// The states of batches.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn batch_states(&self, ids: &BTreeSet<&str>) -> Result<Vec<(String, BatchState)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let sql = states_sql(ids.len());
        let rows: Vec<StateRow> = on_pool!(self.reader(), |c| {
            let read = sqlx::query_as(sql).persistent(false);
            bind_each!(read, ids.iter().copied()).fetch_all(c).await?
        });
        rows.into_iter().map(into_state).collect()
    }
}

/// The states of batches, as a transaction sees them.
pub(in crate::store) async fn states_in(
    tx: &mut Tx,
    ids: &BTreeSet<&str>,
) -> Result<Vec<(String, BatchState)>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = states_sql(ids.len());
    let rows: Vec<StateRow> = in_tx!(tx, |c| {
        let read = sqlx::query_as(sql).persistent(false);
        bind_each!(read, ids.iter().copied()).fetch_all(c).await?
    });
    rows.into_iter().map(into_state).collect()
}

type StateRow = (String, String, Option<String>);

fn states_sql(batches: usize) -> Sql {
    sql!(
        "-- states\nSELECT id, status, ending FROM batches WHERE id IN {ids}",
        ids = list(1, batches)
    )
}

fn into_state((id, status, ending): StateRow) -> Result<(String, BatchState)> {
    Ok((id, state::from_columns(&status, ending.as_deref())?))
}
