//! What is kept, what is removed, and what is found when the store is looked over.

mod audit;
mod busy;
mod files;

use std::time::Duration;

use nightshift::internals::store::{AuditFinding, AuditSettings, Audited, Store};

use crate::support::Server;

/// Short, so that what is waited for is not waited for long.
const SETTINGS: AuditSettings = AuditSettings {
    lease: Duration::from_millis(100),
    grace: Duration::from_hours(1),
};

/// What an audit found.
#[derive(Debug, Default)]
struct Findings {
    faults: Vec<String>,
    waits: Vec<String>,
    audited: Audited,
}

/// The store behind a server.
async fn store_of(server: &Server) -> Store {
    Store::open(&server.database, 2, server.clock.clone())
        .await
        .expect("opens")
}

async fn audit(store: &Store) -> Findings {
    let mut found = Findings::default();
    let (faults, waits) = (&mut found.faults, &mut found.waits);
    let mut tell = |told: AuditFinding| match told {
        AuditFinding::Fault(text) => faults.push(text),
        AuditFinding::Waits(text) => waits.push(text),
        AuditFinding::Progress(_) => {}
    };
    found.audited = store.audit(SETTINGS, &mut tell).await.expect("can be read");
    assert_eq!(found.audited.faults, found.faults.len() as u64);
    found
}
