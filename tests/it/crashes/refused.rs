//! What the database does not take, for a reason that will not pass by waiting.

use nightshift::internals::store::Engine;
use serde_json::json;

use crate::support::session::Session;
use crate::support::{CHAT, Server, eventually, ids, on, on_every_engine, request};

const REFUSE: &str = "
    CREATE FUNCTION refused() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'not this one';
    END $$;
    CREATE TRIGGER refused BEFORE INSERT ON segments FOR EACH ROW
    WHEN (NEW.chunk_no = 1) EXECUTE FUNCTION refused()";
const REFUSE_SQLITE: &str = "
    CREATE TRIGGER refused BEFORE INSERT ON segments WHEN NEW.chunk_no = 1
    BEGIN
        SELECT RAISE(ABORT, 'not this one');
    END";

/// As if more than two units at once took longer than a statement may.
const NO_TIME: &str = "
    CREATE FUNCTION no_time() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT count(*) FROM written) > 2 THEN
            RAISE EXCEPTION 'canceling statement due to statement timeout'
                USING ERRCODE = 'query_canceled';
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER no_time AFTER INSERT ON segments REFERENCING NEW TABLE AS written
        FOR EACH STATEMENT EXECUTE FUNCTION no_time()";

/// Lines of a few units.
fn lines(ids: &[String]) -> String {
    let padding = "x".repeat(2_000);
    let line = |id: &String| {
        let message = json!({"role": "user", "content": padding});
        request(id, json!({"model": "sim-small", "messages": [message]}))
    };
    ids.iter().map(line).collect()
}

async fn a_unit_that_cannot_be_written_holds_up_no_other_one() {
    let server = Server::with("[worker]\nlease = \"1s\"").await;
    let mut database = Session::open(&server.database).await;
    let (refuse, accept) = match database.engine() {
        Engine::Sqlite => (REFUSE_SQLITE, "DROP TRIGGER refused"),
        Engine::Postgres => (REFUSE, "DROP TRIGGER refused ON segments"),
    };
    database.execute(refuse).await;

    let ids = ids(400);
    let batch = server.create_batch(lines(&ids), CHAT).await;
    server.until_rows("units", |count| count > 2).await;
    server
        .until_rows("units WHERE state <> 'done'", |count| count == 1)
        .await;
    server
        .until_rows("units WHERE chunk_no = 1 AND state <> 'done'", |count| {
            count == 1
        })
        .await;
    let others = server
        .until(&batch, |batch| batch.counts.completed > 0)
        .await;
    assert_eq!(others.status, "in_progress", "{others}");
    // It was let go, and is sent again.
    let sent = || server.simulator.stats().total.calls;
    let before = sent();
    eventually("its lines are sent again", async || {
        sent() > before.max(400)
    })
    .await;
    server
        .until_rows("segments WHERE chunk_no = 1", |count| count == 0)
        .await;

    database.execute(accept).await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.status, "completed", "{batch}");
    assert_eq!(batch.counts.completed, 400);
    server.exactly_once(&batch, &ids).await;
}

on_every_engine![a_unit_that_cannot_be_written_holds_up_no_other_one];

/// As many units at once as finish at once, but the database has time for two.
#[tokio::test]
async fn units_for_which_the_database_has_not_enough_time_are_written_by_and_by() {
    let test = async {
        let server = Server::start().await;
        let mut database = Session::open(&server.database).await;
        database.execute(NO_TIME).await;
        let ids = ids(1_000);
        let batch = server.run(lines(&ids), CHAT).await;
        assert_eq!(batch.counts.completed, 1_000, "{batch}");
        server.exactly_once(&batch, &ids).await;
        assert_eq!(
            server.simulator.stats().total.calls,
            1_000,
            "none is let go"
        );
    };
    on(Engine::Postgres, Box::pin(test)).await;
}
