//! `nightshift check --store`: finds nothing in a store that is well, and each thing that can be
//! wrong in one that is not.

use nightshift::internals::store::Engine;
use serde_json::{Value, json};

use super::{audit, store_of};
use crate::support::binary::{command, ended};
use crate::support::session::Session;
use crate::support::{Batch, CHAT, Server, chat, engines, ids, on_every_engine, request};

/// Two models, and what is in flight is cut at a stop.
const CONFIG: &str = r#"
[worker]
shutdown_grace = "0s"

[[upstreams]]
name = "simulated"
base_url = "{simulated}"
concurrency = 64

[[models]]
name = "sim-small"
routes = [{ upstream = "simulated" }]

[[models]]
name = "sim-large"
routes = [{ upstream = "simulated" }]
"#;

/// Every table that a fault is made in.
const TABLES: [&str; 13] = [
    "files",
    "tenant_storage",
    "chunks",
    "chunk_models",
    "batches",
    "batch_counts",
    "backlog",
    "units",
    "segments",
    "replicas",
    "idempotency",
    "answers",
    "answer_totals",
];

/// A server that has run, and what is in its store.
struct Mixed {
    server: Server,
    /// Completed, with lines of both kinds and of two models.
    done: Batch,
    /// In progress, with some lines done and none in flight.
    live: Batch,
    /// The same with one line done, which stands in the tail of its unit.
    short: Batch,
    /// Failed its validation.
    failed: Batch,
    /// Completed, with three lines.
    small: Batch,
}

/// Lines of two models, some of which fail.
fn lines(count: usize) -> String {
    let line = |(number, id): (usize, String)| {
        let model = if number % 5 == 0 {
            "sim-large"
        } else {
            "sim-small"
        };
        let mut body = json!({"model": model, "messages": [{"role": "user", "content": id}]});
        if number % 7 == 0 {
            body["simulate"] = json!({"status": 400});
        }
        request(&id, body)
    };
    ids(count).into_iter().enumerate().map(line).collect()
}

impl Mixed {
    /// Batches that ended in every way, and one that has not.
    async fn run() -> Self {
        let mut server = Server::with(CONFIG).await;
        let done = server.run(lines(700), CHAT).await;
        assert_eq!(done.status, "completed", "{done}");
        let failed = server.failed_batch("{}\n", CHAT).await;
        let small = server.run(lines(3), CHAT).await;
        let hang = json!({"hang": true});
        let cancelled = server
            .create_batch(lines(20) + &chat("a", hang.clone()), CHAT)
            .await;
        server.until(&cancelled, |batch| batch.done() == 20).await;
        let live = server
            .create_batch(lines(600) + &chat("a", hang), CHAT)
            .await;
        server.until(&live, |batch| batch.done() == 600).await;
        let short = chat("b", Value::Null) + &chat("a", json!({"hang": true}));
        let short = server.create_batch(short, CHAT).await;
        server.until(&short, |batch| batch.done() == 1).await;
        server.stop().await;
        // Begins to end while nobody works: that is done at the next start.
        server.start_again().await;
        server.cancel(&cancelled).await;
        server.stop().await;
        Mixed {
            server,
            done,
            live,
            short,
            failed,
            small,
        }
    }
}

async fn a_store_that_is_well_has_no_faults() {
    let mut server = Server::with(CONFIG).await;
    let store = store_of(&server).await;
    let empty = audit(&store).await;
    assert!(empty.faults.is_empty(), "{empty:?}");

    // Beside a running server nothing that is merely in motion is taken for a fault.
    let batch = server.create_batch(lines(3000), CHAT).await;
    let mut looks = 0;
    loop {
        let has_ended = server.batch(&batch).await.has_ended();
        let found = audit(&store).await;
        assert!(found.faults.is_empty(), "{found:?}");
        looks += 1;
        if has_ended {
            break;
        }
    }
    println!("looked {looks} times");
    let found = audit(&store).await;
    assert_eq!((found.audited.batches, found.audited.live_batches), (1, 0));
    assert_eq!((found.audited.files, found.audited.lines), (1, 3000));
    assert!(found.audited.segments > 0 && found.audited.database_bytes > 0);
    server.stop().await;

    let mixed = Mixed::run().await;
    let found = audit(&store_of(&mixed.server).await).await;
    assert!(
        found.faults.is_empty() && found.waits.is_empty(),
        "{found:?}"
    );
    assert_eq!(found.audited.batches, 6);
}

/// How each fault is made, and what is said of it. `{done}`, `{live}` and `{short}` are batches,
/// `{input}`, `{output}` and `{error}` the files of the one that is done, `{no}` is the number of
/// one of its segments, and `{one}` is the input of `{small}`.
const FAULTS: &[(&str, &str)] = &[
    (
        "UPDATE units SET batch_id = 'batch_none' WHERE batch_id = '{live}'",
        "batch batch_none: 4 units of a batch that is not there",
    ),
    (
        "UPDATE batches SET status = 'validating', in_progress_at = NULL WHERE id = '{live}'",
        "batch {live}: 4 units of a batch that has not begun, and yet it was leased",
    ),
    (
        "UPDATE batches SET status = 'validating', in_progress_at = NULL WHERE id = '{live}'",
        "batch {live}: 2 rows of the backlog of a batch that is not live",
    ),
    (
        "INSERT INTO units ({unit}) SELECT '{done}', chunk_no, model_no, 'waiting', 0, 0, 0, 1, 1, done, 0, 0
         FROM units WHERE batch_id = '{live}' AND state = 'waiting'",
        "batch {done}: 1 open unit of a batch that has ended",
    ),
    (
        "UPDATE units SET state = 'leased', owner = NULL WHERE batch_id = '{live}' AND state = 'waiting'",
        "batch {live}: 1 unit leased by nobody",
    ),
    (
        "UPDATE backlog SET waiting = waiting + 1 WHERE batch_id = '{live}' AND model_no = 0",
        "batch {live}: the backlog says that",
    ),
    (
        "UPDATE backlog SET model_no = 7 WHERE batch_id = '{live}' AND model_no = 1",
        "batch {live}: no row in the backlog for model 1",
    ),
    (
        "UPDATE backlog SET model_no = 7 WHERE batch_id = '{live}' AND model_no = 1",
        "batch {live}: a row in the backlog for model 7, which has no units",
    ),
    (
        "INSERT INTO backlog (batch_id, model_no, model, waiting) VALUES ('{done}', 0, 'm', 0)",
        "batch {done}: 1 row of the backlog of a batch that is not live",
    ),
    (
        "UPDATE tenant_storage SET bytes = bytes + 7
         WHERE slot = (SELECT MIN(slot) FROM tenant_storage)",
        "tenant tenant-a: 7 bytes of its files that are not counted, or are counted and not there",
    ),
    (
        "INSERT INTO answer_totals (tenant, answers, bytes) VALUES ('tenant-a', 0, 5)",
        "tenant tenant-a: 5 bytes of its kept answers that are not counted, or are counted and not \
         there",
    ),
    (
        "INSERT INTO answers
            (key, tenant, file_id, kept_at, status, bytes, stored_bytes, answer)
         VALUES ('k', 'tenant-a', 'file-gone', 0, 200, 0, 0, 'a')",
        "file file-gone: 1 answer of a file that is not there, or whose content was removed",
    ),
    (
        "UPDATE batches SET completed = completed + 1 WHERE id = '{done}'",
        "batch {done}: 701 of 700 requests are counted",
    ),
    (
        "UPDATE batches SET completed = completed - 1 WHERE id = '{done}'",
        "batch {done}: 699 of 700 requests are counted",
    ),
    (
        "UPDATE batches SET completed = completed - 1, failed = failed + 1 WHERE id = '{done}'",
        "batch {done}: 599 are counted, but its segments have 600 lines of output",
    ),
    (
        "UPDATE batch_counts SET cancelled = cancelled + 1 WHERE batch_id = '{live}'",
        "batch {live}: 87 are counted, but its segments have 86 lines of error",
    ),
    (
        "UPDATE batches SET output_tokens = output_tokens + 1 WHERE id = '{done}'",
        "batch {done}: its usage is",
    ),
    (
        "INSERT INTO batch_counts VALUES ('batch_none', 0, 0, 0, 0, 0, 0, 0, 0, 0)",
        "batch batch_none: 1 row of counts of a batch that is not there, or has not begun",
    ),
    (
        "INSERT INTO batch_counts VALUES ('{failed}', 0, 0, 0, 0, 0, 0, 0, 0, 0)",
        "batch {failed}: 1 row of counts of a batch that is not there, or has not begun",
    ),
    (
        "INSERT INTO batch_counts VALUES ('{done}', 0, 1, 0, 0, 0, 0, 0, 0, 0)",
        "batch {done}: 701 of 700 requests are counted",
    ),
    (
        "UPDATE batches SET total = total + 1 WHERE id = '{live}'",
        "batch {live}: it has 602 requests, its units 601",
    ),
    (
        "UPDATE units SET done = {blob} WHERE batch_id = '{live}' AND chunk_no = 0 AND model_no = 0",
        "batch {live}: unit 0/0: its bitmap is not that of the",
    ),
    (
        "UPDATE units SET flush_no = flush_no + 1 WHERE batch_id = '{live}' AND chunk_no = 0 AND model_no = 0",
        "batch {live}: unit 0/0: it was flushed",
    ),
    (
        "UPDATE units SET output_bytes = output_bytes + 1 WHERE batch_id = '{live}' AND chunk_no = 0 AND model_no = 0",
        "batch {live}: unit 0/0: it has",
    ),
    (
        "UPDATE units SET state = 'done' WHERE batch_id = '{live}' AND state = 'waiting'",
        "it is done with",
    ),
    (
        "DELETE FROM segments WHERE batch_id = '{done}' AND chunk_no = 1",
        "lines of output",
    ),
    (
        "DELETE FROM segments WHERE batch_id = '{done}' AND chunk_no = 1",
        "file {output}: it has",
    ),
    (
        "UPDATE segments SET data = {blob} WHERE batch_id = '{done}' AND chunk_no = 1",
        "batch {done}: segment 1/0/{no} cannot be read",
    ),
    (
        "UPDATE segments SET entries = {blob} WHERE batch_id = '{done}' AND chunk_no = 1",
        "batch {done}: segment 1/0/{no} cannot be read",
    ),
    (
        "INSERT INTO segments SELECT batch_id, chunk_no, 7, flush_no, entries, data FROM segments
         WHERE batch_id = '{done}' AND chunk_no = 1 AND model_no = 0",
        "is there twice",
    ),
    (
        "INSERT INTO segments SELECT batch_id, chunk_no, 7, flush_no, entries, data FROM segments
         WHERE batch_id = '{live}' AND chunk_no = 1 AND model_no = 0",
        "batch {live}: segments of 1/7, which is no unit of it",
    ),
    (
        "UPDATE segments SET flush_no = 77 WHERE batch_id = '{done}' AND chunk_no = 1 AND model_no = 0 AND flush_no = {no}",
        "batch {done}: flush numbers of 1/0 have a gap",
    ),
    (
        "INSERT INTO segments SELECT 'batch_none', chunk_no, model_no, flush_no, entries, data
         FROM segments WHERE batch_id = '{done}' AND chunk_no = 1 AND model_no = 0 AND flush_no = {no}",
        "batch batch_none: 1 segment of a batch that is not there",
    ),
    (
        "UPDATE units SET tail_entries = NULL, tail_data = NULL WHERE batch_id = '{short}'",
        "batch {short}: unit 0/0: its bitmap is not that of the",
    ),
    (
        "UPDATE units SET tail_data = {blob} WHERE batch_id = '{short}'",
        "batch {short}: tail of 0/0 cannot be read",
    ),
    (
        "INSERT INTO segments SELECT batch_id, chunk_no, model_no, flush_no, tail_entries, tail_data
         FROM units WHERE batch_id = '{short}'",
        "batch {short}: segment 0/0/1: line 0 is there twice",
    ),
    (
        "UPDATE files SET state = 'purged' WHERE batch_id = '{done}'",
        "of a batch that is not there, or whose files were removed",
    ),
    (
        "UPDATE files SET state = 'purged' WHERE id = '{input}'",
        "file {input}: 2 chunks of a file that is not there, or whose content was removed",
    ),
    (
        "UPDATE files SET state = 'purged' WHERE id = '{input}'",
        "file {input}: 4 rows of chunk_models of a file",
    ),
    (
        "UPDATE chunks SET file_id = 'file-none' WHERE file_id = '{input}'",
        "file file-none: 2 chunks of a file that is not there",
    ),
    (
        "DELETE FROM chunks WHERE file_id = '{input}' AND chunk_no = 1",
        "but its chunks end at",
    ),
    (
        "DELETE FROM chunks WHERE file_id = '{input}' AND chunk_no = 0",
        "file {input}: chunk 1/0 begins at byte",
    ),
    (
        "UPDATE chunks SET data = {blob} WHERE file_id = '{input}' AND chunk_no = 1",
        "file {input}: chunk 1/0 cannot be read",
    ),
    (
        "UPDATE chunk_models SET requests = requests + 1 WHERE file_id = '{input}' AND chunk_no = 1 AND model_no = 0",
        "batch {done}: chunk 1 has 189 requests and 188 lines",
    ),
    (
        "UPDATE files SET requests = requests + 1 WHERE id = '{one}'",
        "batch {small}: chunk 0 has 4 requests and 3 lines",
    ),
    (
        "UPDATE files SET requests = requests + 1 WHERE id = '{one}'",
        "file {one}: it has 4 requests, its models 3",
    ),
    (
        "UPDATE files SET requests = requests - 1 WHERE id = '{input}'",
        "file {input}: it has 699 requests, its models 700",
    ),
    (
        "UPDATE files SET models = '[[1]]' WHERE id = '{one}'",
        "file {one}: its models cannot be read",
    ),
    (
        "UPDATE files SET models = NULL WHERE id = '{input}'",
        "file {input}: it has 700 requests, its models 0",
    ),
    (
        "UPDATE files SET is_one_chunk = 1 WHERE id = '{input}'",
        "file {input}: it is said to be one chunk, and has chunk 1",
    ),
    (
        "UPDATE files SET is_one_chunk = 1 WHERE id = '{input}'",
        "file {input}: it is said to be one chunk, and has 4 rows of chunk_models",
    ),
    (
        "UPDATE files SET batch_id = 'batch_none' WHERE id = '{output}'",
        "file {output}: 1 output or error file of a batch that is not there",
    ),
    (
        "UPDATE files SET bytes = bytes + 1 WHERE id = '{error}'",
        "file {error}: it has",
    ),
    (
        "UPDATE files SET chunk_sizes = NULL WHERE id = '{output}'",
        "file {output}: its table of chunks is not that of its lines",
    ),
    (
        "UPDATE batches SET output_file_id = 'file-none' WHERE id = '{done}'",
        "batch {done}: its output file file-none is not there",
    ),
    (
        "UPDATE batches SET output_file_id = NULL WHERE id = '{done}'",
        "file {output}: it is the output file of batch {done}, which does not name it",
    ),
    (
        "UPDATE batches SET output_file_id = NULL WHERE id = '{done}'",
        "batch {done}: it is completed and has lines, but no output file",
    ),
];

/// The columns of a unit that has only been made.
const UNIT: &str = "batch_id, chunk_no, model_no, state, epoch, flush_no, takeovers, requests, \
                    chunk_bytes, done, output_bytes, error_bytes";

/// What is a fault while a server runs, and waits for one while none does.
const CHORES: &[(&str, &str, &str)] = &[
    (
        "INSERT INTO files (id, tenant, purpose, filename, bytes, created_at, state, touched_at)
         VALUES ('file-old', 't', '', '', 0, 0, 'uploading', 0)",
        "file-old: this upload shows no sign of life",
        "uploads that show no sign of life: 1",
    ),
    (
        "UPDATE files SET expires_at = 1 WHERE id = '{output}'",
        "{output}: this file is past its expiry",
        "files past their expiry: 1",
    ),
    (
        "UPDATE files SET state = 'deleted', touched_at = 1 WHERE id = '{error}'",
        "{error}: this file was hidden long ago",
        "files whose content is to be removed: 1",
    ),
    (
        "INSERT INTO units ({unit}) SELECT '{done}', chunk_no, model_no, 'done', 0, 0, 0, 1, 1, done, 0, 0
         FROM units WHERE batch_id = '{live}' AND state = 'waiting';
         UPDATE batches SET completed_at = 1 WHERE id = '{done}'",
        "{done}: this batch has ended, and no server has removed its units",
        "batches that have ended and have units still: 1",
    ),
    (
        // It ended while it got its first units.
        "INSERT INTO units ({unit}) SELECT '{failed}', chunk_no, model_no, 'waiting', 0, 0, 0, 1, 1, {blob}, 0, 0
         FROM units WHERE batch_id = '{live}' AND chunk_no = 0;
         UPDATE batches SET failed_at = 1 WHERE id = '{failed}'",
        "{failed}: this batch has ended, and no server has removed its units",
        "batches that have ended and have units still: 1",
    ),
    (
        "INSERT INTO batch_counts VALUES ('{done}', 0, 1, 0, 0, 0, 0, 0, 0, 0);
         UPDATE batches SET completed = completed - 1, completed_at = 1 WHERE id = '{done}'",
        "{done}: this batch has ended, and no server has moved its counts into its row",
        "batches that have ended and have rows of counts still: 1",
    ),
    (
        "UPDATE units SET state = 'leased', owner = 'gone' WHERE batch_id = '{live}' AND state = 'waiting';
         UPDATE backlog SET waiting = 0 WHERE batch_id = '{live}'",
        "1 unit leased by gone, which is gone, and nobody takes them over",
        "1 unit of a process that is gone: the next server takes them over",
    ),
];

/// A server that has run since 1970, as far as the store knows.
const A_SERVER: &str = "INSERT INTO replicas (token, name, started_at, lease_until) VALUES ('t', 'n', 0, 9000000000000)";

async fn each_fault_is_found() {
    let mixed = Mixed::run().await;
    let database = &mixed.server.database;
    let store = store_of(&mixed.server).await;
    let keep: String = TABLES
        .iter()
        .map(|table| format!("CREATE TABLE kept_{table} AS SELECT * FROM {table};"))
        .collect();
    engines::execute(database, &keep).await;
    let mend: String = TABLES
        .iter()
        .map(|table| {
            format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table};")
        })
        .collect();
    let blob = match store.engine() {
        nightshift::internals::store::Engine::Sqlite => "X'0102'",
        nightshift::internals::store::Engine::Postgres => "'\\x0102'::bytea",
    };
    let text = |value: &Value| value.as_str().expect("is text").to_owned();
    let no = format!(
        "SELECT MIN(flush_no) FROM segments
         WHERE batch_id = '{}' AND chunk_no = 1 AND model_no = 0",
        mixed.done.id
    );
    let no = Session::open(database).await.number(&no).await;
    let fill = |template: &str| {
        template
            .replace("{done}", &text(&mixed.done["id"]))
            .replace("{live}", &text(&mixed.live["id"]))
            .replace("{short}", &text(&mixed.short["id"]))
            .replace("{no}", &no.to_string())
            .replace("{failed}", &text(&mixed.failed["id"]))
            .replace("{small}", &text(&mixed.small["id"]))
            .replace("{one}", &text(&mixed.small["input_file_id"]))
            .replace("{input}", &text(&mixed.done["input_file_id"]))
            .replace("{output}", &text(&mixed.done["output_file_id"]))
            .replace("{error}", &text(&mixed.done["error_file_id"]))
            .replace("{blob}", blob)
            .replace("{unit}", UNIT)
    };
    let mut missed = Vec::new();
    for (sql, fault) in FAULTS {
        engines::execute(database, &fill(sql)).await;
        let found = audit(&store).await;
        let fault = fill(fault);
        if !found.faults.iter().any(|text| text.contains(&fault)) {
            missed.push(format!("{sql}\n{fault}\n{:#?}", found.faults));
        }
        engines::execute(database, &mend).await;
    }
    assert!(missed.is_empty(), "not found:\n{}", missed.join("\n\n"));
    for (sql, fault, waits) in CHORES {
        engines::execute(database, &fill(sql)).await;
        let found = audit(&store).await;
        assert!(found.faults.is_empty(), "{sql}: {found:?}");
        assert_eq!(found.waits, [*waits], "{sql}");

        engines::execute(database, A_SERVER).await;
        let found = audit(&store).await;
        let fault = fill(fault);
        let is_told = found.faults.iter().any(|text| text.starts_with(&fault));
        assert!(is_told, "{sql}: {found:?}");
        engines::execute(database, &mend).await;
    }
    let found = audit(&store).await;
    assert!(found.faults.is_empty(), "all are mended: {found:?}");
}

async fn the_command_tells_and_its_exit_code_says_so() {
    let mut server = Server::with(CONFIG).await;
    server.run(lines(30), CHAT).await;
    let database = server.database.clone();
    let check = || command(&["check", "--store", "--database", &database]);
    let well = ended(check()).await;
    assert_eq!(well.code, Some(0), "{well:?}");
    assert!(
        well.out
            .contains("ok    store          1 file, 1 batch (0 live), 30 lines, 0 units"),
        "{well:?}"
    );
    assert!(
        well.out.contains("stored in") && well.out.contains("are free"),
        "{well:?}"
    );
    server.stop().await;
    server.leave_broken();

    engines::execute(&server.database, "UPDATE batches SET failed = failed + 1").await;
    let ill = ended(check()).await;
    assert_eq!(ill.code, Some(1), "{ill:?}");
    assert!(
        ill.out.contains("FAIL  store          batch batch_"),
        "{ill:?}"
    );
    assert!(
        ill.out
            .contains("FAIL  store          2 faults found in 1 file"),
        "{ill:?}"
    );
}

/// As it comes to be where two processes write to one file by different names.
#[tokio::test]
async fn a_sqlite_file_whose_pages_do_not_fit_each_other_is_a_fault() {
    engines::on(Engine::Sqlite, async {
        let mut server = Server::with(CONFIG).await;
        server.run(lines(30), CHAT).await;
        server.stop().await;
        server.leave_broken();
        let damage = "PRAGMA writable_schema = ON; \
             DELETE FROM sqlite_schema WHERE name = 'files_of_batch'";
        engines::execute(&server.database, damage).await;
        let found = audit(&store_of(&server).await).await;
        let is_told = found
            .faults
            .iter()
            .any(|text| text.starts_with("the database file: "));
        assert!(is_told, "{found:?}");
    })
    .await;
}

on_every_engine![
    a_store_that_is_well_has_no_faults,
    each_fault_is_found,
    the_command_tells_and_its_exit_code_says_so,
];
