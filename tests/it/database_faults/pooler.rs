//! A pooler in transaction mode before Postgres.

use super::{CONFIG, Midway, start};
use crate::support::binary::Launch;
use crate::support::chat;
use crate::support::engines::on_postgres_by;
use crate::support::pooler::Pooler;

#[tokio::test]
async fn servers_work_together_behind_a_pooler() {
    let pooler = Pooler::start(2);
    pooler.ready().await;
    let test = async {
        let config = CONFIG.replace("[database]", "[database]\npooler = true");
        let mut server = start(&config).await;
        let neighbour = server.replica(Launch::new()).await;
        let midway = Midway::begin(&server).await;
        // What it knows of the others' work it has looked up.
        midway.ends_well(&server).await;

        // A second file, by whom it does not matter.
        let one = server
            .run(chat("one", serde_json::Value::Null), super::CHAT)
            .await;
        server.exactly_once(&one, &["one".to_owned()]).await;
        neighbour.terminate().await;
        server.stop().await;
    };
    on_postgres_by(&pooler.url(), Box::pin(test)).await;
}
