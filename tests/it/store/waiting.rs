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

async fn a_tenant_with_very_many_batches_is_listed_from_both_ends() {
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
    let others: Vec<String> = (0..3)
        .map(|number| format!("another-{number:05}"))
        .collect();
    let first = (2..513).map(|number| format!("{TENANT}-{number:05}"));
    let first: BTreeSet<String> = first.chain(others).chain([urgent]).collect();
    let last = (2_488..3_000).map(|number| format!("{TENANT}-{number:05}"));
    let both: BTreeSet<String> = first.iter().cloned().chain(last).collect();
    for (turn, expected) in [(0, &first), (1, &both), (2, &first), (3, &both)] {
        let listed = fixture.store.backlog(turn).await.expect("lists");
        let ids: BTreeSet<String> = listed.iter().map(|row| row.batch_id.clone()).collect();
        assert_eq!(ids.len(), listed.len(), "turn {turn}: one is listed twice");
        assert_eq!(ids, *expected, "turn {turn}");
    }
}

async fn batches_that_are_fewer_than_two_lists_are_listed_once() {
    let fixture = Fixture::new().await;
    waiting(&fixture.url, TENANT, 0..700).await;
    let listed = fixture.store.backlog(1).await.expect("lists");
    let ids: BTreeSet<&str> = listed.iter().map(|row| row.batch_id.as_str()).collect();
    assert_eq!((ids.len(), listed.len()), (700, 700));
}

on_every_engine![
    a_tenant_with_very_many_batches_is_listed_from_both_ends,
    batches_that_are_fewer_than_two_lists_are_listed_once,
];
