//! The audit that ends each test: whatever a test did to its server, the store tells one story.

use std::time::Duration;

use nightshift::internals::domain::clock::Clock;
use nightshift::internals::store::{AuditFinding, AuditSettings, Store};

use super::secrets::search_rows;
use super::{PATIENCE, engines};

/// Nothing waits here for what others take over: nobody is left.
const SETTINGS: AuditSettings = AuditSettings {
    lease: Duration::ZERO,
    grace: Duration::ZERO,
};

/// Audits a store whose servers are gone, and fails on each fault. It blocks, and so has a thread
/// and a runtime of its own: a drop, which may not wait, can call it.
pub fn audit(database: &str, clock: &Clock) {
    let audit = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let audit = async { tokio::time::timeout(PATIENCE, faults(database, clock)).await };
        runtime.expect("builds").block_on(audit)
    };
    let audited = std::thread::scope(|scope| scope.spawn(audit).join());
    let faults = audited.expect("can be audited").expect("ends in time");
    assert!(faults.is_empty(), "the store is not sound: {faults:#?}");
}

async fn faults(url: &str, clock: &Clock) -> Vec<String> {
    // As long after the end of all servers: what they would mend by and by is no fault.
    engines::execute(url, "UPDATE replicas SET lease_until = 0").await;
    let store = Store::open(url, 2, clock.clone()).await.expect("opens");
    let mut faults = Vec::new();
    let mut tell = |told: AuditFinding| {
        if let AuditFinding::Fault(text) = told {
            faults.push(text);
        }
    };
    let audited = store.audit(SETTINGS, &mut tell).await;
    audited.expect("can be read");
    store.close().await;
    search_rows(url).await;
    faults
}
