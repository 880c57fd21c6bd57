//! A database that is not there when it is wanted.

use crate::support::binary::{Binary, Process, command, ended};
use crate::support::engines::{database, on_postgres_by, shared_postgres};
use crate::support::eventually;
use crate::support::proxy::Proxy;

/// Runs a test with a database that is behind a proxy, and has a password to be kept secret.
async fn behind_a_proxy(test: impl AsyncFnOnce(&Proxy, &str)) {
    let proxy = Proxy::to(&shared_postgres()).await;
    on_postgres_by(proxy.url(), async {
        let directory = tempfile::tempdir().expect("makes a directory");
        let mut url = reqwest::Url::parse(&database(directory.path()).await).expect("is a URL");
        url.set_password(Some("sk-hunter2-41f0"))
            .expect("has a host");
        test(&proxy, url.as_str()).await;
    })
    .await;
}

/// Does something while nobody takes connections, and while whoever takes them says nothing.
async fn while_it_is_away(proxy: &Proxy, test: impl AsyncFn()) {
    proxy.refuse();
    test().await;
    proxy.fall_silent();
    test().await;
}

#[tokio::test]
async fn a_server_waits_for_its_database() {
    Box::pin(behind_a_proxy(async |proxy, url| {
        proxy.refuse();
        let mut serve = command(&["serve", "--listen", "127.0.0.1:0"]);
        serve.env("DATABASE_URL", url);
        let mut server = Process::start(serve, b"");
        eventually("it has tried again", async || proxy.refused() > 2).await;
        assert!(server.is_running());
        proxy.restore();
        let log = Binary::listening(server).await.terminate().await;
        assert!(log.contains("waiting for the database"), "{log}");
        assert!(!log.contains("sk-hunter2-41f0"), "{log}");
    }))
    .await;
}

#[tokio::test]
async fn a_server_does_not_wait_for_ever() {
    Box::pin(behind_a_proxy(async |proxy, url| {
        while_it_is_away(proxy, async || {
            let mut serve = command(&["serve", "--listen", "127.0.0.1:0"]);
            serve
                .env("DATABASE_URL", url)
                .env("NIGHTSHIFT_DATABASE__START_TIMEOUT", "1s");
            let ended = ended(serve).await;
            assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""));
            let why = "error: cannot use the database postgres://127.0.0.1:";
            assert!(ended.errors.contains(why), "{}", ended.errors);
            assert!(
                !ended.errors.contains("sk-hunter2-41f0"),
                "{}",
                ended.errors
            );
        })
        .await;
    }))
    .await;
}

#[tokio::test]
async fn commands_say_that_there_is_no_database() {
    Box::pin(behind_a_proxy(async |proxy, url| {
        while_it_is_away(proxy, async || {
            for args in [&["keys", "list"][..], &["check"]] {
                let mut command = command(args);
                command.env("DATABASE_URL", url);
                let ended = ended(command).await;
                assert_eq!(ended.code, Some(1), "{args:?}");
                let said = format!("{}{}", ended.out, ended.errors);
                let why = "cannot use the database postgres://127.0.0.1:";
                assert!(said.contains(why), "{args:?}: {said}");
                assert!(!said.contains("sk-hunter2-41f0"), "{args:?}: {said}");
            }
        })
        .await;
    }))
    .await;
}

#[tokio::test]
async fn what_waiting_cannot_mend_is_told_at_once() {
    Box::pin(behind_a_proxy(async |_, url| {
        let mut url = reqwest::Url::parse(url).expect("is a URL");
        url.set_path("/nobody_made_this_database");
        let mut serve = command(&["serve", "--listen", "127.0.0.1:0"]);
        // Far longer than a test may take.
        serve
            .env("DATABASE_URL", url.as_str())
            .env("NIGHTSHIFT_DATABASE__START_TIMEOUT", "1d");
        let ended = ended(serve).await;
        assert_eq!(ended.code, Some(1));
        let why = "nobody_made_this_database";
        assert!(ended.errors.contains(why), "{}", ended.errors);
    }))
    .await;
}
