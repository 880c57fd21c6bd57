//! What is used is counted once, and moves as it ages.

use nightshift::internals::domain::price::Price;
use nightshift::internals::domain::totals::Totals;
use nightshift::internals::domain::usage::Usage;
use nightshift::internals::store::{UnitFlush, UsageBy, UsageKey, UsageQuery, UsageRow, Used};

use super::{Fixture, flush};
use crate::support::on_every_engine;

const HOUR_MS: i64 = 3_600_000;

/// A line of a model that used so many tokens.
fn used(model: &str, input_tokens: i64) -> Used {
    let usage = Usage {
        input_tokens,
        ..Usage::default()
    };
    let price = Price {
        input: "0.000000003".parse().expect("a decimal"),
        cached_input: None,
        cache_write: None,
        output: 0.into(),
        request: 0.into(),
        above: None,
    };
    Used {
        by: UsageKey {
            tenant: "tenant-a".into(),
            key_id: "".into(),
            model: model.into(),
            upstream: "one".into(),
            task: "".into(),
            endpoint: "/v1/chat/completions",
        },
        totals: Totals {
            requests: 1,
            usage,
            cost: price.cost(&usage),
            ..Totals::default()
        },
    }
}

fn query(period_ms: Option<i64>, by: Vec<UsageBy>) -> UsageQuery {
    UsageQuery {
        from_ms: 0,
        until_ms: i64::MAX,
        period_ms,
        by,
        tenants: None,
        keys: None,
        models: None,
        endpoints: None,
        rows_max: 100,
    }
}

async fn rows(fixture: &Fixture, query: &UsageQuery) -> Vec<UsageRow> {
    fixture.store.usage(query).await.expect("reads")
}

async fn a_flush_that_is_tried_again_or_refused_adds_nothing() {
    let fixture = Fixture::new().await;
    let (batch, owner) = (fixture.running(10).await, fixture.replica().await);
    let unit = fixture.lease(&owner, &batch, 1).await.remove(0);
    let first = UnitFlush {
        usage: vec![used("m", 7), used("n", 1)],
        ..flush(&unit, &[0, 1], false)
    };
    for owner in [&*owner, &*owner, "another"] {
        fixture
            .store
            .flush(owner, 3, &[&first])
            .await
            .expect("answers");
        let all = rows(&fixture, &query(None, vec![UsageBy::Model])).await;
        let tokens: Vec<_> = all
            .iter()
            .map(|row| (&*row.model, row.totals.usage.input_tokens))
            .collect();
        assert_eq!(tokens, [("m", 7), ("n", 1)]);
    }
    let by_batch = rows(&fixture, &query(None, vec![UsageBy::Batch])).await;
    assert_eq!(
        (&*by_batch[0].batch_id, by_batch[0].totals.requests),
        (&*batch, 2)
    );
    assert_eq!(by_batch[0].totals.cost.to_string(), "0.000000000000024");
}

async fn minutes_become_hours_and_nothing_is_counted_twice_or_lost() {
    let fixture = Fixture::new().await;
    let (batch, owner) = (fixture.running(700).await, fixture.replica().await);
    // To the beginning of an hour.
    let now = fixture.clock.now_ms();
    fixture.clock.advance_ms(HOUR_MS - now % HOUR_MS);
    let begun = fixture.clock.now_ms() / HOUR_MS * HOUR_MS;
    let mut unit = fixture.lease(&owner, &batch, 1).await.remove(0);
    for line in 0..4 {
        let write = UnitFlush {
            usage: vec![used("m", 1 << line)],
            ..flush(&unit, &[line], false)
        };
        // In other slots, as other processes would.
        let written = fixture
            .store
            .flush(&owner, i64::from(line) % 2, &[&write])
            .await;
        assert_eq!(written.expect("writes").accepted.len(), 1);
        unit.flush_no += 1;
        unit.done = write.done;
        // Of the four, one comes in the next hour.
        fixture.clock.advance_ms(20 * 60_000);
    }
    let by_hour = query(Some(HOUR_MS), vec![UsageBy::Model]);
    let expected = [(begun, 7, 3), (begun + HOUR_MS, 8, 1)];
    let assert_same = async |when: &str| {
        let found = rows(&fixture, &by_hour).await;
        let found: Vec<_> = found
            .iter()
            .map(|row| {
                let totals = &row.totals;
                (row.start_ms, totals.usage.input_tokens, totals.requests)
            })
            .collect();
        assert_eq!(found, expected, "{when}");
    };
    let minutes = async || rows(&fixture, &query(Some(60_000), vec![])).await.len();
    assert_same("at once").await;
    assert!(!fixture.store.roll_up_usage().await.expect("rolls up"));
    assert_eq!(minutes().await, 4, "they are young");
    fixture.clock.advance_ms(48 * HOUR_MS - 20 * 60_000);
    fixture.store.roll_up_usage().await.expect("rolls up");
    assert_same("after an hour is old").await;
    assert_eq!(minutes().await, 2, "an hour moves as a whole");
    fixture.clock.advance_ms(HOUR_MS);
    for _ in 0..2 {
        fixture.store.roll_up_usage().await.expect("rolls up");
        assert_same("after both are").await;
    }
    // What is too old goes, and the batch still knows its own.
    assert!(
        !fixture
            .store
            .forget_usage(begun + HOUR_MS)
            .await
            .expect("forgets")
    );
    let left = rows(&fixture, &by_hour).await;
    assert_eq!((left.len(), left[0].start_ms), (1, begun + HOUR_MS));
    let of_batch = rows(&fixture, &query(None, vec![UsageBy::Batch])).await;
    assert_eq!(of_batch[0].totals.usage.input_tokens, 15);
}

on_every_engine![
    a_flush_that_is_tried_again_or_refused_adds_nothing,
    minutes_become_hours_and_nothing_is_counted_twice_or_lost,
];
