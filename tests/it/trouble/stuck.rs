//! Statements that hang, because somebody else holds a lock.

use sqlx::{Connection as _, Executor as _, PgConnection};

use super::{CONFIG, Midway, get, is_unavailable};
use crate::support::{Server, on};
use nightshift::store::Engine;

/// Holds whole tables until it is dropped.
struct Hold(PgConnection);

impl Hold {
    async fn of(database: &str, tables: &str) -> Hold {
        let mut connection = PgConnection::connect(database).await.expect("connects");
        let lock = format!("BEGIN; LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE");
        let locked = connection
            .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(lock)))
            .await;
        locked.expect("locks");
        Hold(connection)
    }

    async fn end(self) {
        self.0.close().await.expect("closes");
    }
}

#[tokio::test]
async fn a_statement_that_hangs_is_given_up_and_tried_again() {
    let test = async {
        let mut server = Server::binary(CONFIG).await;
        let midway = Midway::begin(&server).await;

        let hold = Hold::of(&server.database, "batches, units, chunks").await;
        is_unavailable(get(&server, "/v1/batches").await).await;
        let file = b"{}\n".to_vec();
        is_unavailable(server.upload(file, "in.jsonl", "batch").await).await;
        hold.end().await;
        midway.comes_to(&server, 200).await;

        // What was half uploaded is seen by nobody.
        let files = server.get("/v1/files").await;
        assert_eq!(files["data"].as_array().map(Vec::len), Some(1), "{files}");

        // Leases, too, can be kept from being renewed.
        let hold = Hold::of(&server.database, "replicas, segments, batch_counts").await;
        is_unavailable(get(&server, "/v1/batches").await).await;
        hold.end().await;
        midway.ends_well(&server).await;
        server.stop().await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}
