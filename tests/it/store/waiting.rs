//! Which batches are listed to be worked on, where a tenant has very many.

use std::collections::BTreeSet;

use super::{Fixture, TENANT};
use crate::support::{engines, on_every_engine};

/// Writes batches of one line that waits, each a second younger than the one before.
async fn waiting(url: &str, tenant: &str, numbers: std::ops::Range<usize>) {
    let batches: Vec<String> = numbers
        .clone()
        .map(|number| {
            format!(
                "('{tenant}-{number:05}', '{tenant}', '/v1/chat/completions', 'file-1', '24h', 0,
                    'in_progress', 1, {number})"
            )
        })
        .collect();
    let batches = format!(
        "INSERT INTO batches (id, tenant, endpoint, input_file_id, completion_window,
            output_expires_seconds, status, total, created_at) VALUES {}",
        batches.join(", ")
    );
    engines::execute(url, &batches).await;
    let backlog: Vec<String> = numbers
        .map(|number| format!("('{tenant}-{number:05}', 0, 'a model', 1)"))
        .collect();
    let backlog = format!(
        "INSERT INTO backlog (batch_id, model_no, model, waiting) VALUES {}",
        backlog.join(", ")
    );
    engines::execute(url, &backlog).await;
}

async fn of_a_tenant_with_very_many_batches_the_first_and_the_last_are_listed() {
    let fixture = Fixture::new().await;
    waiting(&fixture.url, TENANT, 0..3_000).await;
    waiting(&fixture.url, "another", 0..3).await;
    let urgent = format!("{TENANT}-01500");
    let prefer = format!("UPDATE batches SET priority = 5 WHERE id = '{urgent}'");
    engines::execute(&fixture.url, &prefer).await;
    // The oldest has no unit that waits, and the next one has ended.
    for change in [
        format!("UPDATE backlog SET waiting = 0 WHERE batch_id = '{TENANT}-00000'"),
        format!("UPDATE batches SET status = 'completed' WHERE id = '{TENANT}-00001'"),
    ] {
        engines::execute(&fixture.url, &change).await;
    }
    // A batch that nobody has validated yet has no unit.
    let validating =
        format!("UPDATE batches SET status = 'validating' WHERE id = '{TENANT}-00002'");
    engines::execute(&fixture.url, &validating).await;
    let batch = |number: usize| format!("{TENANT}-{number:05}");
    let others = (0..3).map(|number| format!("another-{number:05}"));
    let first: BTreeSet<String> = (3..514).map(batch).chain([urgent]).chain(others).collect();
    let with = |more: std::ops::Range<usize>| {
        let more = more.map(batch);
        first
            .iter()
            .cloned()
            .chain(more)
            .collect::<BTreeSet<String>>()
    };
    let (oldest, newest) = (with(3..515), with(2_488..3_000));
    for (turn, expected) in [(0, &first), (1, &oldest), (2, &first), (3, &newest)] {
        let listed = fixture.store.backlog(turn).await.expect("lists");
        let ids: BTreeSet<String> = listed.iter().map(|row| row.batch_id.clone()).collect();
        assert_eq!(ids.len(), listed.len(), "turn {turn}: one is listed twice");
        assert_eq!(ids, *expected, "turn {turn}");
    }
}

/// However many models the batches have.
async fn no_tenant_has_more_rows_in_a_list_than_another() {
    let fixture = Fixture::new().await;
    waiting(&fixture.url, TENANT, 0..600).await;
    let models: Vec<String> = (0..600)
        .flat_map(|batch| (1..20).map(move |model| (batch, model)))
        .map(|(batch, model)| format!("('{TENANT}-{batch:05}', {model}, 'a model', 1)"))
        .collect();
    for models in models.chunks(1_000) {
        let models = models.join(", ");
        let insert =
            format!("INSERT INTO backlog (batch_id, model_no, model, waiting) VALUES {models}");
        engines::execute(&fixture.url, &insert).await;
    }
    waiting(&fixture.url, "another", 0..3).await;
    let listed = fixture.store.backlog(0).await.expect("lists");
    let of = |tenant: &str| listed.iter().filter(|row| row.tenant == tenant).count();
    assert_eq!((of(TENANT), of("another")), (512, 3));
    // Each batch is there by one of its models.
    let batches: BTreeSet<&str> = listed.iter().map(|row| row.batch_id.as_str()).collect();
    assert_eq!(batches.len(), 512 + 3);
}

async fn batches_that_are_fewer_than_two_lists_are_listed_once() {
    let fixture = Fixture::new().await;
    waiting(&fixture.url, TENANT, 0..700).await;
    let listed = fixture.store.backlog(3).await.expect("lists");
    let ids: BTreeSet<&str> = listed.iter().map(|row| row.batch_id.as_str()).collect();
    assert_eq!((ids.len(), listed.len()), (700, 700));
}

on_every_engine![
    of_a_tenant_with_very_many_batches_the_first_and_the_last_are_listed,
    batches_that_are_fewer_than_two_lists_are_listed_once,
    no_tenant_has_more_rows_in_a_list_than_another,
];
