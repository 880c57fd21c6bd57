//! Migrations: several servers that start at once, and servers of different versions.

use std::time::Duration;

use nightshift::domain::clock::Clock;
use nightshift::store::{Engine, OpenOptions, Store};
use sqlx::{Connection as _, Executor as _, PgConnection, SqliteConnection};

use crate::support::binary::{command, ended};
use crate::support::{Server, engines, on_every_engine};

/// How many start at once.
const STARTS: usize = 6;

async fn however_many_start_at_once_one_migrates() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = engines::database(directory.path()).await;
    let starts = (0..STARTS).map(|_| {
        let url = url.clone();
        // On threads of their own, as processes would be.
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("builds").block_on(async {
                let options = OpenOptions {
                    connections: 2,
                    patience: Duration::from_secs(60),
                    ..OpenOptions::default()
                };
                let opened = Store::open_with(&url, &options, Clock::default()).await;
                let store = opened.expect("opens");
                let keys = store.keys().await.expect("has its tables");
                store.close().await;
                keys.len()
            })
        })
    });
    for start in futures::future::join_all(starts).await {
        assert_eq!(start.expect("does not panic"), 0);
    }
}

async fn processes_that_start_at_once_do_not_get_in_each_others_way() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = engines::database(directory.path()).await;
    let starts = (0..STARTS).map(|_| {
        let mut list = command(&["keys", "list", "--database", &url]);
        list.current_dir(directory.path());
        ended(list)
    });
    for started in futures::future::join_all(starts).await {
        assert_eq!(started.code, Some(0), "{}", started.errors);
    }
}

/// Has a database look as if a newer program had migrated it.
async fn migrate_beyond(url: &str) {
    const BEYOND: &str = "INSERT INTO _sqlx_migrations
        (version, description, success, checksum, execution_time)
        VALUES (9999, 'of the future', TRUE, '', 0)";
    let done = match engines::current() {
        Engine::Sqlite => {
            let mut connection = SqliteConnection::connect(url).await.expect("connects");
            connection.execute(BEYOND).await.map(|_| ())
        }
        Engine::Postgres => {
            let mut connection = PgConnection::connect(url).await.expect("connects");
            connection.execute(BEYOND).await.map(|_| ())
        }
    };
    done.expect("writes");
}

async fn a_server_that_is_older_than_the_schema_says_so_and_stops() {
    let mut server = Server::binary("").await;
    migrate_beyond(&server.database).await;
    // The one that runs notices, too.
    let running = server.binary_process().ended().await;
    let file = server.config_file();
    let mut serve = command(&["serve", "--config", &file]);
    serve
        .env("DATABASE_URL", &server.database)
        .env("NIGHTSHIFT_SERVER__LISTEN", "127.0.0.1:0");
    for ended in [running, ended(serve).await] {
        assert_eq!(ended.code, Some(1), "{}", ended.errors);
        for word in ["version 9999", "versions up to", "upgrade"] {
            assert!(ended.errors.contains(word), "{word}: {}", ended.errors);
        }
    }
}

on_every_engine![
    however_many_start_at_once_one_migrates,
    processes_that_start_at_once_do_not_get_in_each_others_way,
    a_server_that_is_older_than_the_schema_says_so_and_stops,
];
