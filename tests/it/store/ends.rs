//! What is removed at an end, and what is not.

use nightshift::internals::store::{Engine, NewUpload};

use super::{Fixture, TENANT, flush};
use crate::support::session::Session;
use crate::support::{engines, on_every_engine};

async fn a_batch_that_is_not_drained_keeps_its_units_that_are_done() {
    let fixture = Fixture::new().await;
    let batch = fixture.running(1500).await;
    let owner = fixture.replica().await;
    let units = fixture.lease(&owner, &batch, 3).await;
    let write = async |flushes: &[_]| {
        let reply = fixture.store.flush(&owner, 0, flushes).await;
        assert_eq!(reply.expect("flushes").accepted.len(), flushes.len());
    };
    let [first, second, third] = [0, 1, 2].map(|unit| flush(&units[unit], &[0], true));
    write(&[&first]).await;
    let finish = async || fixture.store.finalize_batch(&batch).await.expect("answers");
    finish().await;
    assert_eq!(engines::rows(&fixture.url, "units").await, 3);

    write(&[&second, &third]).await;
    finish().await;
    assert_eq!(engines::rows(&fixture.url, "units").await, 0);
    let ended = fixture.store.batch(TENANT, &batch).await.expect("finds");
    let output = ended.expect("is there").row.output_file_id;
    let file = fixture.store.file(TENANT, &output.expect("has one")).await;
    let bytes = [&first, &second, &third].map(|flush| flush.output_bytes);
    let file = file.expect("finds").expect("is there");
    assert_eq!(file.bytes, bytes.iter().sum::<i64>());
}

const REFUSE: &str = "
    CREATE FUNCTION refused() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'not this one';
    END $$;
    CREATE TRIGGER refused BEFORE DELETE ON files FOR EACH ROW
    WHEN (OLD.id = 'file-0') EXECUTE FUNCTION refused()";
const REFUSE_SQLITE: &str = "
    CREATE TRIGGER refused BEFORE DELETE ON files WHEN OLD.id = 'file-0'
    BEGIN
        SELECT RAISE(ABORT, 'not this one');
    END";

async fn an_upload_that_cannot_be_swept_does_not_keep_the_others_from_it() {
    let fixture = Fixture::new().await;
    let mut database = Session::open(&fixture.url).await;
    database
        .execute(match database.engine() {
            Engine::Sqlite => REFUSE_SQLITE,
            Engine::Postgres => REFUSE,
        })
        .await;
    for number in 0..4 {
        let upload = NewUpload {
            file_id: format!("file-{number}"),
            tenant: TENANT.to_owned(),
            max_stored: None,
        };
        let begun = fixture.store.begin_upload(&upload, &[]).await;
        begun.expect("begins");
    }
    let swept = fixture.store.sweep_uploads(i64::MAX).await;
    assert_eq!(swept.expect("sweeps"), 3);
    assert_eq!(engines::rows(&fixture.url, "files").await, 1);
    // From here on it is a file that was deleted.
    let purged = fixture.store.purge(i64::MAX).await.expect("purges");
    assert_eq!(purged.removed, 1);
    let swept = fixture.store.sweep_uploads(i64::MAX).await;
    assert_eq!(swept.expect("sweeps"), 0);
}

on_every_engine![
    a_batch_that_is_not_drained_keeps_its_units_that_are_done,
    an_upload_that_cannot_be_swept_does_not_keep_the_others_from_it,
];
