//! Batches that wait to be validated: in turns, many at once, and in ranges.

use nightshift::internals::domain::batch::Status;
use nightshift::internals::domain::id;
use nightshift::internals::store::{
    AuditFinding, AuditSettings, Begun, Cancel, Engine, NewBatch, Unvalidated, Verdict,
};

use super::{Fixture, TENANT};
use crate::support::session::Session;
use crate::support::{CHAT, engines, on, on_every_engine};

impl Fixture {
    /// A batch of a file, in `validating`.
    async fn created_of(&self, tenant: &str, file: &str) -> String {
        let created_at = self.clock.now_ms();
        let batch = NewBatch {
            id: id::batch(),
            tenant: tenant.to_owned(),
            key_id: None,
            endpoint: CHAT.to_owned(),
            input_file_id: file.to_owned(),
            task: None,
            reuse: None,
            details: false,
            completion_window: "1h".to_owned(),
            output_expires_seconds: 3600,
            metadata: None,
            created_at,
            expires_at: Some(created_at + 3_600_000),
            steering: nightshift::internals::store::Steering::default(),
        };
        let created = self.store.create_batch(&batch, None).await;
        created.expect("creates");
        batch.id
    }

    /// Makes the file of a batch one with so many units: chunks are not looked at here.
    async fn grow(&self, file: &str, chunks: i64) {
        let grow = format!(
            "WITH RECURSIVE n(no) AS (SELECT 1 UNION ALL SELECT no + 1 FROM n WHERE no < {chunks})
             INSERT INTO chunk_models SELECT '{file}', no + 1000, 0, 1, 1 FROM n
             UNION ALL SELECT '{file}', 0, 0, 3, 1"
        );
        engines::execute(&self.url, &grow).await;
        let count = format!(
            "UPDATE files SET requests = {chunks} + 3, bytes = CAST({chunks} AS BIGINT) * 262144,
                is_one_chunk = 0
             WHERE id = '{file}'"
        );
        engines::execute(&self.url, &count).await;
    }

    async fn unvalidated(&self) -> Vec<Unvalidated> {
        self.store.unvalidated().await.expect("lists")
    }

    async fn status(&self, batch: &str) -> Status {
        let found = self.store.batch(TENANT, batch).await.expect("finds");
        found.expect("is there").state.status
    }

    async fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut tell = |told: AuditFinding| {
            // The files are not as large as is said of them.
            if let AuditFinding::Fault(text) = told
                && text.contains("batch")
            {
                faults.push(text);
            }
        };
        let settings = AuditSettings {
            lease: std::time::Duration::from_secs(10),
            grace: std::time::Duration::from_hours(1),
        };
        self.store.audit(settings, &mut tell).await.expect("audits");
        faults
    }
}

fn accepted() -> Verdict {
    Verdict::Accepted {
        model: Some("sim-small".to_owned()),
    }
}

async fn batches_are_found_by_tenants_in_turn() {
    let fixture = Fixture::new().await;
    let file = fixture.file(1).await.id;
    for _ in 0..140 {
        fixture.created_of("tenant-many", &file).await;
    }
    let few = [
        fixture.created_of("tenant-few", &file).await,
        fixture.created_of("tenant-few", &file).await,
    ];
    let found = fixture.unvalidated().await;
    let turn_of = |id: &String| found.iter().position(|batch| batch.batch_id == *id);
    assert_eq!(few.each_ref().map(turn_of), [Some(1), Some(3)]);
    // The file is another tenant's.
    assert!(found.iter().all(|batch| batch.input.is_none()));
}

/// A file may name very many models, and have very many batches.
async fn batches_of_one_file_share_what_is_known_of_its_models() {
    let fixture = Fixture::new().await;
    let file = fixture.file(1).await.id;
    fixture.created_of(TENANT, &file).await;
    fixture.created_of(TENANT, &file).await;
    let found = fixture.unvalidated().await;
    let inputs: Vec<_> = found.iter().filter_map(|b| b.input.as_ref()).collect();
    assert_eq!((inputs.len(), inputs[0].models.len()), (2, 1));
    assert!(std::sync::Arc::ptr_eq(&inputs[0].models, &inputs[1].models));
}

async fn a_group_is_settled_at_once_and_each_as_it_was_judged() {
    let fixture = Fixture::new().await;
    let file = fixture.file(700).await.id;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(fixture.created_of(TENANT, &file).await);
    }
    let found = fixture.unvalidated().await;
    let rejected = Verdict::Rejected {
        errors: "[]".to_owned(),
    };
    let accepted = accepted();
    let verdicts = [&accepted, &rejected, &accepted, &accepted, &rejected];
    let judged: Vec<_> = found.iter().zip(verdicts).collect();
    // One that is cancelled meanwhile is left alone, and costs the others nothing.
    let cancelled = fixture.store.cancel_batch(TENANT, &ids[3]).await;
    assert!(matches!(cancelled.expect("answers"), Cancel::Granted(_)));
    let settle = async || {
        let settled = fixture.store.settle_batches(&judged, None).await;
        settled.expect("settles").settled
    };
    assert_eq!(settle().await, 4);
    assert_eq!(settle().await, 0, "a second time changes nothing");
    let mut found = Vec::new();
    for id in &ids {
        found.push((fixture.status(id).await, fixture.waiting(id).await));
    }
    let runs = (Status::InProgress, 2);
    let failed = (Status::Failed, 0);
    assert_eq!(found, [runs, failed, runs, (Status::Cancelled, 0), failed]);
    assert_eq!(fixture.faults().await, Vec::<String>::new());
}

async fn a_batch_with_many_units_gets_them_in_ranges_and_others_go_on_after_a_kill() {
    let fixture = Fixture::new().await;
    let file = fixture.file(3).await.id;
    fixture.grow(&file, 12_000).await;
    let id = fixture.created_of(TENANT, &file).await;
    let batch = fixture.unvalidated().await.remove(0);
    assert!(!batch.is_small());
    let begin = async |batch: &Unvalidated| {
        let begun = fixture.store.begin_batch(batch, Some("sim-small")).await;
        begun.expect("goes on")
    };
    assert_eq!(begin(&batch).await, Begun::Grows);
    let made = engines::rows(&fixture.url, "units").await;
    assert!(made > 0 && made < 12_001, "{made}");
    assert_eq!(fixture.status(&id).await, Status::Validating);
    assert_eq!(fixture.waiting(&id).await, 0, "none can be leased");
    assert_eq!(fixture.faults().await, Vec::<String>::new());

    // Another process knows from the store how far it is.
    let batch = fixture.unvalidated().await.remove(0);
    while begin(&batch).await != Begun::Runs {}
    assert_eq!(begin(&batch).await, Begun::Elsewhere);
    assert_eq!(fixture.status(&id).await, Status::InProgress);
    assert_eq!(fixture.waiting(&id).await, 12_001);
    assert_eq!(engines::rows(&fixture.url, "units").await, 12_001);
}

/// An earlier version took it for a batch with many units, and stopped in between.
async fn a_small_batch_that_has_some_units_already_gets_the_others() {
    let fixture = Fixture::new().await;
    let file = fixture.file(700).await.id;
    let id = fixture.created_of(TENANT, &file).await;
    let some = format!(
        "INSERT INTO units (batch_id, chunk_no, model_no, state, epoch, flush_no, takeovers,
            requests, chunk_bytes, done, output_bytes, error_bytes)
         SELECT '{id}', chunk_no, model_no, 'waiting', 0, 0, 0, requests, chunk_bytes, {none}, 0, 0
         FROM chunk_models WHERE chunk_no = 0",
        none = match fixture.store.engine() {
            Engine::Sqlite => "X''",
            Engine::Postgres => "''",
        }
    );
    engines::execute(&fixture.url, &some).await;
    assert_eq!(engines::rows(&fixture.url, "units").await, 1);
    assert!(fixture.unvalidated().await[0].is_small());
    fixture.accepted(id.clone()).await;
    assert_eq!(engines::rows(&fixture.url, "units").await, 2);
    assert_eq!(fixture.waiting(&id).await, 2);
    assert_eq!(fixture.faults().await, Vec::<String>::new());
}

async fn a_batch_that_ends_while_it_gets_its_units_leaves_none() {
    let fixture = Fixture::new().await;
    let file = fixture.file(3).await.id;
    fixture.grow(&file, 6_000).await;
    for number in 0..3 {
        let id = fixture.created_of(TENANT, &file).await;
        let batch = fixture.unvalidated().await.remove(0);
        let begun = fixture.store.begin_batch(&batch, None).await;
        assert_eq!(begun.expect("begins"), Begun::Grows);
        let ended = match number {
            0 => {
                let cancelled = fixture.store.cancel_batch(TENANT, &id).await;
                assert!(matches!(cancelled.expect("answers"), Cancel::Granted(_)));
                Status::Cancelled
            }
            1 => {
                let errors = "[]".to_owned();
                let judged = [(&batch, &Verdict::Rejected { errors })];
                let settled = fixture.store.settle_batches(&judged, None).await;
                assert_eq!(settled.expect("settles").settled, 1);
                Status::Failed
            }
            _ => {
                fixture.clock.advance_ms(2 * 3_600_000);
                assert_eq!(fixture.store.expire_batches().await.expect("ends"), 1);
                Status::Expired
            }
        };
        assert_eq!(fixture.status(&id).await, ended);
        let begun = fixture.store.begin_batch(&batch, None).await;
        assert_eq!(begun.expect("answers"), Begun::Elsewhere);
        assert!(engines::rows(&fixture.url, "units").await > 0);
        assert_eq!(fixture.faults().await, Vec::<String>::new());
        fixture.store.sweep_units().await.expect("sweeps");
        assert_eq!(engines::rows(&fixture.url, "units").await, 0);
    }
}

#[tokio::test]
async fn who_is_at_a_batch_makes_nobody_wait() {
    let test = async {
        let fixture = Fixture::new().await;
        let file = fixture.file(3).await.id;
        let locked = fixture.created_of(TENANT, &file).await;
        let free = fixture.created_of(TENANT, &file).await;
        let found = fixture.unvalidated().await;
        let mut other = Session::open(&fixture.url).await;
        let lock = format!("BEGIN; SELECT 1 FROM batches WHERE id = '{locked}' FOR UPDATE");
        other.execute(&lock).await;
        let accepted = accepted();
        let judged: Vec<_> = found.iter().map(|batch| (batch, &accepted)).collect();
        let settled = fixture.store.settle_batches(&judged, None).await;
        assert_eq!(settled.expect("settles").settled, 1);
        assert_eq!(fixture.status(&free).await, Status::InProgress);
        assert_eq!(fixture.status(&locked).await, Status::Validating);
        other.execute("ROLLBACK").await;
        let settled = fixture.store.settle_batches(&judged, None).await;
        assert_eq!(settled.expect("settles").settled, 1);
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

on_every_engine![
    batches_of_one_file_share_what_is_known_of_its_models,
    batches_are_found_by_tenants_in_turn,
    a_group_is_settled_at_once_and_each_as_it_was_judged,
    a_batch_with_many_units_gets_them_in_ranges_and_others_go_on_after_a_kill,
    a_small_batch_that_has_some_units_already_gets_the_others,
    a_batch_that_ends_while_it_gets_its_units_leaves_none,
];
