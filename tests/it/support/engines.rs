//! The two databases. A test is written once and runs on both.

use std::path::Path;

use nightshift::internals::api;
use nightshift::internals::domain::id;
use nightshift::internals::domain::scope::Scopes;
use nightshift::internals::store::{ApiKey, Engine, Store};
use secrecy::ExposeSecret as _;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, Executor as _, PgConnection, SqliteConnection};

use super::PATIENCE;

tokio::task_local! {
    static ENGINE: Engine;
    /// The URLs of the Postgres to use instead of the one that all tests share: by which its
    /// databases are made, and by which they are used.
    static POSTGRES: (String, String);
}

/// Runs a test on a Postgres of its own.
pub async fn on_postgres_at(url: String, test: impl Future<Output = ()>) {
    on_postgres(url.clone(), url, test).await;
}

/// Runs a test by another way to the Postgres that all tests share, which this URL leads.
pub async fn on_postgres_by(way: &str, test: impl Future<Output = ()>) {
    on_postgres(shared_postgres(), way.to_owned(), test).await;
}

async fn on_postgres(made: String, used: String, test: impl Future<Output = ()>) {
    POSTGRES
        .scope((made, used), on(Engine::Postgres, test))
        .await;
}

/// Runs a test on an engine: whatever it starts uses it.
pub async fn on(engine: Engine, test: impl Future<Output = ()>) {
    ENGINE.scope(engine, test).await;
}

/// Stamps tests out once for each engine. They are plain async functions of the module that
/// names them here.
macro_rules! on_every_engine {
    ($($test:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $test() {
                $crate::support::on(nightshift::internals::store::Engine::Sqlite, Box::pin(super::$test())).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test]
            async fn $test() {
                $crate::support::on(nightshift::internals::store::Engine::Postgres, Box::pin(super::$test())).await;
            })+
        }
    };
}

pub(crate) use on_every_engine;

/// The engine of the running test: SQLite where it does not say.
pub fn current() -> Engine {
    ENGINE.try_with(|engine| *engine).unwrap_or(Engine::Sqlite)
}

/// The URL of a new, empty database of the running test's engine.
pub async fn database(directory: &Path) -> String {
    let (_, used) = new_database(directory).await;
    used
}

/// The same, and before it the URL by which the database was made: where a test puts something
/// in between, the way around that.
pub async fn new_database(directory: &Path) -> (String, String) {
    match current() {
        Engine::Sqlite => {
            let url = format!("sqlite://{}", directory.join("data/test.db").display());
            (url.clone(), url)
        }
        Engine::Postgres => new_postgres_database().await,
    }
}

/// The URL of the Postgres that all tests share.
pub fn shared_postgres() -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests are told where Postgres is"
    )]
    let server = std::env::var("NIGHTSHIFT_TEST_POSTGRES");
    server.expect(
        "NIGHTSHIFT_TEST_POSTGRES is not set: run tests/run.sh, which starts a Postgres, or set \
         it to the URL of a server on which databases may be created",
    )
}

async fn new_postgres_database() -> (String, String) {
    let (server, used) = POSTGRES
        .try_with(Clone::clone)
        .unwrap_or_else(|_| (shared_postgres(), shared_postgres()));
    let name = format!("test_{}", id::incarnation());
    let mut connection = PgConnection::connect(&server)
        .await
        .expect("connects to Postgres");
    // Of the other template one cannot make a copy while a vacuum is at it.
    let create = format!("CREATE DATABASE {name} TEMPLATE template0");
    connection
        .execute(sqlx::AssertSqlSafe(create))
        .await
        .expect("creates a database");
    (named(&server, &name), named(&used, &name))
}

/// The URL of another database of the same server.
fn named(server: &str, name: &str) -> String {
    let (front, query) = server.split_once('?').unwrap_or((server, ""));
    let (host, _) = front.rsplit_once('/').expect("names a database");
    format!("{host}/{name}?{query}")
}

/// Stores a new key for a tenant.
pub async fn add_key(store: &Store, tenant: &str) -> String {
    add(store, tenant, Scopes::API).await
}

/// Stores a new key for an operator.
pub async fn add_operator(store: &Store) -> String {
    let scopes = Scopes::parse("api,metrics,admin").expect("are scopes");
    add(store, "operators", scopes).await
}

async fn add(store: &Store, tenant: &str, scopes: Scopes) -> String {
    let new = api::new_key();
    let key = ApiKey {
        id: id::key(),
        tenant: tenant.to_owned(),
        name: "test".to_owned(),
        hash: new.hash,
        hint: new.hint,
        scopes,
        created_at: 0,
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
    };
    store.add_key(&key).await.expect("stores the key");
    new.key.expose_secret().to_owned()
}

/// A connection to a database of SQLite, which waits for others as long as anything is waited for.
pub async fn sqlite(database: &str) -> SqliteConnection {
    let options: SqliteConnectOptions = database.parse().expect("is a URL of SQLite");
    let options = options.busy_timeout(PATIENCE);
    SqliteConnection::connect_with(&options)
        .await
        .expect("connects")
}

/// How many rows a table of a database has.
pub async fn rows(database: &str, table: &str) -> i64 {
    let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    let count: sqlx::Result<i64> = if database.starts_with("sqlite") {
        let mut connection = sqlite(database).await;
        sqlx::query_scalar(sql).fetch_one(&mut connection).await
    } else {
        let mut connection = PgConnection::connect(database).await.expect("connects");
        sqlx::query_scalar(sql).fetch_one(&mut connection).await
    };
    count.expect("counts")
}

/// How many lines of all batches are counted as completed or failed.
pub const COUNTED: &str = "SELECT CAST(COALESCE(SUM(lines), 0) AS BIGINT) FROM (
    SELECT completed + failed AS lines FROM batch_counts
    UNION ALL SELECT completed + failed FROM batches) counted";

/// What of a database's rows a request can leave behind.
const TABLES: [&str; 9] = [
    "files",
    "chunks",
    "chunk_models",
    "batches",
    "batch_counts",
    "backlog",
    "units",
    "segments",
    "idempotency",
];

/// How many rows there are in each of those tables.
pub async fn all_rows(database: &str) -> Vec<(String, i64)> {
    let counts = TABLES.map(|table| format!("SELECT '{table}', count(*) FROM {table}"));
    let sql = sqlx::AssertSqlSafe(counts.join(" UNION ALL "));
    let counted = if database.starts_with("sqlite") {
        let mut connection = sqlite(database).await;
        sqlx::query_as(sql).fetch_all(&mut connection).await
    } else {
        let mut connection = PgConnection::connect(database).await.expect("connects");
        sqlx::query_as(sql).fetch_all(&mut connection).await
    };
    let mut counted: Vec<(String, i64)> = counted.expect("counts");
    counted.sort();
    counted
}

/// Whether no file is stored, nor anything of one.
pub async fn is_empty(database: &str) -> bool {
    all_rows(database).await.iter().all(|(_, rows)| *rows == 0)
}

/// Changes a database behind the server's back.
pub async fn execute(database: &str, sql: &str) {
    let statement = sqlx::AssertSqlSafe(sql.to_owned());
    let done = if database.starts_with("sqlite") {
        let mut connection = sqlite(database).await;
        sqlx::raw_sql(statement)
            .execute(&mut connection)
            .await
            .map(drop)
    } else {
        let mut connection = PgConnection::connect(database).await.expect("connects");
        sqlx::raw_sql(statement)
            .execute(&mut connection)
            .await
            .map(drop)
    };
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}
