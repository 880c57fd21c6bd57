//! A database that goes away in the middle of a batch, and comes back.

use super::{CONFIG, Midway, get, is_unavailable, start};
use crate::support::engines::{on_postgres_at, on_postgres_by, shared_postgres};
use crate::support::postgres::OwnPostgres;
use crate::support::proxy::Proxy;

#[tokio::test]
async fn a_restart_of_postgres_loses_nothing() {
    let postgres = OwnPostgres::start();
    let test = async {
        let mut server = start(CONFIG).await;
        let midway = Midway::begin(&server).await;
        postgres.stop("fast");
        is_unavailable(get(&server, "/v1/batches").await).await;
        let ready = get(&server, "/readyz").await;
        assert_eq!(ready.status(), 503);
        postgres.start_again();
        midway.goes_on(&server).await;
        postgres.stop("immediate");
        postgres.start_again();
        midway.ends_well(&server).await;
        server.stop().await;
    };
    on_postgres_at(postgres.url(), Box::pin(test)).await;
}

#[tokio::test]
async fn connections_that_are_cut_lose_nothing() {
    let proxy = Proxy::to(&shared_postgres()).await;
    let test = async {
        let mut server = start(CONFIG).await;
        let midway = Midway::begin(&server).await;
        for _ in 0..2 {
            proxy.cut();
            midway.goes_on(&server).await;
        }
        proxy.refuse();
        is_unavailable(get(&server, "/v1/batches").await).await;
        proxy.restore();
        midway.ends_well(&server).await;
        server.stop().await;
    };
    on_postgres_by(proxy.url(), Box::pin(test)).await;
}

#[tokio::test]
async fn connections_that_fall_silent_lose_nothing() {
    let proxy = Proxy::to(&shared_postgres()).await;
    let test = async {
        let mut server = start(CONFIG).await;
        let midway = Midway::begin(&server).await;
        // More often than there are connections in the pool: none is lost to it for good.
        for _ in 0..5 {
            proxy.fall_silent();
            is_unavailable(get(&server, "/v1/batches").await).await;
            proxy.restore();
            midway.goes_on(&server).await;
        }
        midway.ends_well(&server).await;
        server.stop().await;
    };
    on_postgres_by(proxy.url(), Box::pin(test)).await;
}
