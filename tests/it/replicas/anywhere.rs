//! Any replica serves any request.

use std::collections::BTreeSet;

use nightshift::internals::store::Engine;

use super::{LASTING, lines, replicas};
use crate::support::{CHAT, ids, on};

#[tokio::test]
async fn any_replica_does_what_is_asked_for_with_what_another_one_has_made() {
    on(Engine::Postgres, async {
        let (server, others) = replicas(LASTING, 6, &["b", "c"]).await;
        let [b, c] = &others[..] else {
            panic!("there are two more")
        };
        let (b, c) = (server.at(&b.base), server.at(&c.base));
        let (few, many) = (ids(30), ids(1_500));
        let small = b.create_batch(lines(&few, 10), CHAT).await;
        let large = b.create_batch(lines(&many, 500), CHAT).await;
        server
            .until(&large, |batch| batch.status == "in_progress")
            .await;
        c.cancel(&large).await;

        assert_eq!(server.ended(&large).await.status, "cancelled");
        let small = server.ended(&small).await;
        assert_eq!(small.status, "completed", "{small}");
        assert_eq!(c.output(&small).await.len(), few.len());

        let listed = server.get("/v1/batches").await;
        let found: BTreeSet<&str> = listed["data"]
            .as_array()
            .expect("is a list")
            .iter()
            .filter_map(|batch| batch["id"].as_str())
            .collect();
        assert_eq!(found, BTreeSet::from([&*small.id, &*large.id]));
        for replica in [b, c] {
            assert_eq!(replica.get("/v1/batches").await, listed);
        }
    })
    .await;
}
