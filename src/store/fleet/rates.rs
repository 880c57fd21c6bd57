//! What is booked against the limits on requests and tokens, and what each process was granted of
//! them. All times are by the database's clock.

use std::collections::BTreeMap;

use sqlx::FromRow;

use crate::store::engine::{Rows, Tx, Value, bind_each, bind_rows, in_tx, list, sql};
use crate::store::{Result, Store};

/// What a process was granted of a limit.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct RateGrant {
    pub token: String,
    /// Not spent, as far as the process has told.
    pub amount: i64,
    /// Asked for beyond that.
    pub wants: i64,
    /// In milliseconds.
    pub valid_until: i64,
    pub seq: i64,
}

/// What is stored of a limit.
#[derive(Clone, Debug, Default)]
pub struct RateRow {
    pub resource: String,
    /// `None`: nothing was booked yet.
    pub book: Option<String>,
    pub grants: Vec<RateGrant>,
}

/// What a process writes of a limit in its turn.
#[derive(Clone, Debug, Default)]
pub struct RateEntry {
    pub resource: String,
    /// `None`: the book has not changed.
    pub book: Option<String>,
    /// This process's. `None`: it has not changed.
    pub grant: Option<RateGrant>,
    /// The processes whose grants are removed.
    pub forgotten: Vec<String>,
}

#[derive(FromRow)]
struct GrantRow {
    resource: String,
    #[sqlx(flatten)]
    grant: RateGrant,
}

impl Store {
    /// A process's turn at the books of these limits, in one transaction: reads them, lets `decide`
    /// choose by them and by the time in milliseconds, and writes that. No other process has its
    /// turn in between. What does not change costs no write.
    ///
    /// # Errors
    /// When the database fails, or the lock is not acquired within `patience_ms`. Then it is
    /// unknown whether what was decided was written.
    pub async fn exchange_rates<T>(
        &self,
        patience_ms: i64,
        resources: &[String],
        decide: impl FnOnce(i64, &[RateRow]) -> (Vec<RateEntry>, T),
    ) -> Result<T> {
        let mut tx = self.begin_exchange(patience_ms).await?;
        let rows = read(&mut tx, resources).await?;
        let now = sql!("-- now\nSELECT {now}", now = self.engine().now_ms());
        let (now_ms,): (i64,) = in_tx!(&mut tx, |c| sqlx::query_as(now).fetch_one(c).await?);
        let (entries, outcome) = decide(now_ms, &rows);
        write(&mut tx, &entries).await?;
        tx.commit().await?;
        Ok(outcome)
    }
}

async fn read(tx: &mut Tx, resources: &[String]) -> Result<Vec<RateRow>> {
    let count = resources.len();
    let books = sql!(
        "-- read_rate_books
         SELECT resource, book FROM rate_books WHERE resource IN {names}",
        names = list(1, count)
    );
    let grants = sql!(
        "-- read_rate_grants
         SELECT resource, token, amount, wants, valid_until, seq FROM rate_grants
         WHERE resource IN {names} ORDER BY resource, token",
        names = list(1, count)
    );
    let books: Vec<(String, String)> = in_tx!(&mut *tx, |c| {
        let read = sqlx::query_as(books);
        bind_each!(read, resources).fetch_all(c).await?
    });
    let grants: Vec<GrantRow> = in_tx!(&mut *tx, |c| {
        let read = sqlx::query_as(grants);
        bind_each!(read, resources).fetch_all(c).await?
    });
    let mut rows: BTreeMap<String, RateRow> = BTreeMap::new();
    let row = |resource: &str| RateRow {
        resource: resource.to_owned(),
        ..RateRow::default()
    };
    for (resource, book) in books {
        let of = rows.entry(resource).or_insert_with_key(|name| row(name));
        of.book = Some(book);
    }
    for GrantRow { resource, grant } in grants {
        let of = rows.entry(resource).or_insert_with_key(|name| row(name));
        of.grants.push(grant);
    }
    Ok(rows.into_values().collect())
}

async fn write(tx: &mut Tx, entries: &[RateEntry]) -> Result<()> {
    let books: Vec<(&String, &String)> = entries
        .iter()
        .filter_map(|entry| Some((&entry.resource, entry.book.as_ref()?)))
        .collect();
    if !books.is_empty() {
        let rows = Rows::of(books.into_iter().map(|(resource, book)| {
            [
                ("resource", Value::from(resource)),
                ("book", Value::from(book)),
            ]
        }));
        let sql = sql!(
            "-- write_rate_books
             INSERT INTO rate_books ({columns}) VALUES {rows}
             ON CONFLICT (resource) DO UPDATE SET book = excluded.book",
            columns = rows.columns(),
            rows = rows.parameters(1)
        );
        in_tx!(&mut *tx, |c| {
            let write = sqlx::query(sql).persistent(false);
            bind_rows!(write, rows).execute(c).await?;
        });
    }
    let grants: Vec<(&String, &RateGrant)> = entries
        .iter()
        .filter_map(|entry| Some((&entry.resource, entry.grant.as_ref()?)))
        .collect();
    if !grants.is_empty() {
        write_grants(tx, &grants).await?;
    }
    let forgotten: Vec<(&String, &String)> = entries
        .iter()
        .flat_map(|entry| entry.forgotten.iter().map(|token| (&entry.resource, token)))
        .collect();
    if !forgotten.is_empty() {
        let rows = Rows::of(forgotten.into_iter().map(|(resource, token)| {
            [
                ("resource", Value::from(resource)),
                ("token", Value::from(token)),
            ]
        }));
        let sql = sql!(
            "-- forget_rate_grants
             DELETE FROM rate_grants WHERE (resource, token) IN (VALUES {rows})",
            rows = rows.parameters(1)
        );
        in_tx!(&mut *tx, |c| {
            let forget = sqlx::query(sql).persistent(false);
            bind_rows!(forget, rows).execute(c).await?;
        });
    }
    Ok(())
}

async fn write_grants(tx: &mut Tx, grants: &[(&String, &RateGrant)]) -> Result<()> {
    let rows = Rows::of(grants.iter().map(|&(resource, grant)| {
        [
            ("resource", Value::from(resource)),
            ("token", Value::from(&grant.token)),
            ("amount", grant.amount.into()),
            ("wants", grant.wants.into()),
            ("valid_until", grant.valid_until.into()),
            ("seq", grant.seq.into()),
        ]
    }));
    let sql = sql!(
        "-- write_rate_grants
         INSERT INTO rate_grants ({columns}) VALUES {rows}
         ON CONFLICT (resource, token) DO UPDATE
         SET amount = excluded.amount, wants = excluded.wants,
            valid_until = excluded.valid_until, seq = excluded.seq",
        columns = rows.columns(),
        rows = rows.parameters(1)
    );
    in_tx!(tx, |c| {
        let write = sqlx::query(sql).persistent(false);
        bind_rows!(write, rows).execute(c).await?;
    });
    Ok(())
}
