//! `nightshift serve`: how it starts, and how it stops.

use serde_json::json;

use super::ended_in;
use crate::support::binary::{Binary, Ended, command, ended};
use crate::support::{CHAT, Server, chat, client_with, eventually, ids};

async fn is_ready(base: &str) {
    eventually("it is ready", async || {
        let ready = client_with(None).get(format!("{base}/readyz")).send().await;
        ready.expect("answers").status() == 200
    })
    .await;
}

#[tokio::test]
async fn with_nothing_said_it_keeps_its_data_in_the_working_directory() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let mut command = command(&["serve", "--listen", "127.0.0.1:0"]);
    command.current_dir(directory.path());
    let mut server = crate::support::binary::Process::start(command, b"");
    let line = server.line().await.expect("says where");
    let base = line.strip_prefix("Listening on ").expect("says where");
    is_ready(base).await;
    assert!(
        directory
            .path()
            .join("nightshift-data/nightshift.db")
            .exists()
    );
    server.signal("TERM");
    let ended = server.ended().await;
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(0), ""),
        "{}",
        ended.errors
    );
    assert!(
        ended.errors.contains("no upstream is configured"),
        "{}",
        ended.errors
    );
}

#[tokio::test]
async fn an_interrupt_ends_it_well_too() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = format!("sqlite://{}", directory.path().join("a.db").display());
    let server = Binary::serve(&["--database", &url], &[]).await;
    server.signal("INT");
    let ended = server.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
}

/// A server that ended instead would surprise whoever asked it to read its configuration again.
#[tokio::test]
async fn what_a_hangup_finds_is_in_the_log_and_the_server_goes_on() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = format!("sqlite://{}", directory.path().join("a.db").display());
    let file = directory.path().join("a.toml");
    let write = |text: &str| std::fs::write(&file, text).expect("writes");
    write("[worker]\nlease = \"10s\"\n");
    let config = file.to_str().expect("is text");
    let mut server = Binary::serve(&["--database", &url, "--config", config], &[]).await;
    write("[worker]\nlease = \"11s\"\n");
    server.signal("HUP");
    server.says("read again, and holds from now on").await;
    server.says("keys=\"worker.lease\"").await;
    write("[worker]\nlease = 11\nleese = \"11s\"\n");
    server.signal("HUP");
    server.says("nothing was changed").await;
    is_ready(&server.base).await;
    let log = server.terminate().await;
    for told in ["worker.lease", "worker.leese"] {
        let told = format!("place=\"{told} ({config}:");
        assert!(log.contains(&told), "{told}: {log}");
    }
}

#[tokio::test]
async fn a_second_server_on_one_sqlite_file_is_refused() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = format!("sqlite://{}", directory.path().join("a.db").display());
    let args = ["--database", url.as_str()];
    let first = Binary::serve(&args, &[]).await;
    let second = ["serve", "--listen", "127.0.0.1:0", "--database", &url];
    let second = ended_in(directory.path(), &second).await;
    assert_eq!((second.code, second.out.as_str()), (Some(1), ""));
    assert!(second.errors.contains("another"), "{}", second.errors);
    assert!(
        second.errors.contains("a.db"),
        "it names the file: {}",
        second.errors
    );
    // The first is none the worse for it, and when it is gone the file is free.
    is_ready(&first.base).await;
    first.terminate().await;
    Binary::serve(&args, &[]).await.terminate().await;
}

/// SQLite keeps its log beside the name by which a file was opened. So two servers that use two
/// names of one file would destroy each other's work.
#[tokio::test]
async fn a_second_server_is_refused_by_whichever_name_it_has_the_file() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let path = |name: &str| directory.path().join(name);
    let url = |name: &str| format!("sqlite://{}", path(name).display());
    let first = Binary::serve(&["--database", &url("a.db")], &[]).await;
    std::os::unix::fs::symlink("a.db", path("symlink.db")).expect("links");
    std::fs::create_dir(path("sub")).expect("makes a directory");
    std::os::unix::fs::symlink("../symlink.db", path("sub/far.db")).expect("links");
    let serve = async |name: &str| {
        let url = url(name);
        ended(command(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--database",
            &url,
        ]))
        .await
    };
    let is_refused = |second: &Ended| {
        assert_eq!(second.code, Some(1), "{}", second.errors);
        let reason = "another nightshift server is using";
        assert!(second.errors.contains(reason), "{}", second.errors);
    };
    is_refused(&serve("symlink.db").await);
    is_refused(&serve("sub/far.db").await);

    // A mount of the file alone, in a namespace of its own.
    std::fs::write(path("mounted.db"), "").expect("writes");
    let mount = "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
    let mounted = async |args: &[&str]| {
        let mut command = tokio::process::Command::new("unshare");
        command
            .args(["-rm", "sh", "-c", mount, "sh"])
            .args([path("a.db"), path("mounted.db")])
            .args(args);
        ended(command).await
    };
    let can_mount = mounted(&["true"]).await.code == Some(0);
    let binary = env!("CARGO_BIN_EXE_nightshift");
    let at_mount = url("mounted.db");
    let serve_mounted = ["serve", "--listen", "127.0.0.1:0", "--database", &at_mount];
    let serve_mounted = [&[binary], &serve_mounted[..]].concat();
    if can_mount {
        is_refused(&mounted(&serve_mounted).await);
    }

    std::fs::hard_link(path("a.db"), path("linked.db")).expect("links");
    is_refused(&serve("linked.db").await);
    is_ready(&first.base).await;

    // Commands would write beside another name, too.
    let linked = url("linked.db");
    let keys = ["keys", "create", "--name", "a", "--database", &linked];
    let check = ["check", "--store", "--database", &linked];
    for args in [&keys[..], &check] {
        let refused = ended_in(directory.path(), args).await;
        let told = format!("{}{}", refused.out, refused.errors);
        assert_eq!(refused.code, Some(1), "{told}");
        assert!(told.contains("hard links"), "{told}");
    }
    first.terminate().await;
    for name in ["linked.db", "a.db"] {
        let refused = serve(name).await;
        assert_eq!(refused.code, Some(1), "{}", refused.errors);
        assert!(refused.errors.contains("hard links"), "{}", refused.errors);
    }
    std::fs::remove_file(path("linked.db")).expect("removes");
    if can_mount {
        let check = [binary, "check", "--store", "--database", &at_mount];
        for args in [&serve_mounted[..], &check] {
            let refused = mounted(args).await;
            let told = format!("{}{}", refused.out, refused.errors);
            assert_eq!(refused.code, Some(1), "{told}");
            assert!(told.contains("is mounted by itself"), "{told}");
        }
    }
    let server = Binary::serve(&["--database", &url("sub/far.db")], &[]).await;
    assert!(path("a.db-wal").exists(), "its log has the file's own name");
    server.terminate().await;
}

#[tokio::test]
async fn a_database_is_a_regular_file_whose_name_may_have_any_character() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let path = |name: &str| directory.path().join(name);
    let made = std::process::Command::new("mkfifo")
        .arg(path("pipe"))
        .status();
    assert!(made.expect("runs").success());
    std::os::unix::fs::symlink("/dev/null", path("null")).expect("links");
    for name in ["pipe", "null", "."] {
        let url = format!("sqlite://{name}");
        let args = ["serve", "--listen", "127.0.0.1:0", "--database", &url];
        let refused = ended_in(directory.path(), &args).await;
        assert_eq!(refused.code, Some(1), "{name}");
        assert!(
            refused.errors.contains("is not a regular file"),
            "{}",
            refused.errors
        );
    }
    for name in ["a#1.db", "a?b.db", "file:x?y=1#z.db"] {
        let url = format!("sqlite:{name}");
        let toml = format!("[database]\nurl = \"{url}\"\n");
        std::fs::write(path("named.toml"), toml).expect("writes");
        let keys = ["keys", "create", "--name", "a"];
        for more in [["--database", &url], ["--config", "named.toml"]] {
            let made = ended_in(directory.path(), &[&keys[..], &more].concat()).await;
            assert_eq!(made.code, Some(0), "{name}: {}", made.errors);
        }
        assert!(path(name).exists(), "{name}");
    }
    let refused = ["check", "--database", "sqlite://a.db?mode=rwc"];
    let refused = ended_in(directory.path(), &refused).await;
    assert!(refused.out.contains("no parameters"), "{}", refused.out);
}

#[tokio::test]
async fn a_taken_address_and_a_broken_database_are_told() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("listens");
    let address = taken.local_addr().expect("has an address").to_string();
    let refused = ended_in(directory.path(), &["serve", "--listen", &address]).await;
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    assert!(refused.errors.contains(&address), "{}", refused.errors);

    std::fs::write(
        directory.path().join("broken.db"),
        "this is no database".repeat(100),
    )
    .expect("writes");
    let args = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--database",
        "sqlite://broken.db",
    ];
    let refused = ended_in(directory.path(), &args).await;
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    assert!(refused.errors.contains("broken.db"), "{}", refused.errors);

    let url = "postgres://nobody:secret-password@127.0.0.1:1/nothing";
    let mut command = command(&["serve", "--listen", "127.0.0.1:0"]);
    command.env("DATABASE_URL", url);
    let refused = ended(command).await;
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    assert!(
        !refused.errors.contains("secret-password"),
        "{}",
        refused.errors
    );
}

/// A server, in the middle of a call that never ends.
async fn busy() -> Server {
    let server = Server::with("").binary().await;
    let lines = chat("hangs", json!({"hang": true})) + &chat("answers", json!(null));
    server.create_batch(lines, CHAT).await;
    eventually("a call hangs", async || {
        let total = server.simulator.stats().total;
        total.in_flight == 1 && total.answered == 1
    })
    .await;
    server
}

#[tokio::test]
async fn a_second_signal_stops_it_at_once() {
    let mut server = busy().await;
    let binary = server.binary_process();
    binary.signal("INT");
    let client = client_with(None);
    let health = format!("{}/healthz", binary.base);
    eventually("it listens no more", async || {
        client.get(&health).send().await.is_err()
    })
    .await;
    binary.signal("INT");
    assert_eq!(binary.ended().await.code, Some(130));
}

#[tokio::test]
async fn calls_in_flight_may_finish_before_it_stops() {
    let server = Server::with("").binary().await;
    let lines: String = ids(40)
        .iter()
        .map(|id| chat(id, json!({"latency_ms": 300})))
        .collect();
    let batch = server.create_batch(lines, CHAT).await;
    eventually("calls are in flight", async || {
        server.simulator.stats().total.in_flight > 0
    })
    .await;
    let mut server = server;
    server.stop().await;
    let stats = server.simulator.stats();
    assert_eq!(stats.total.abandoned, 0, "none was cut off");
    server.start_again().await;
    let batch = server.ended(&batch).await;
    server.exactly_once(&batch, &ids(40)).await;
    let bodies = server.simulator.stats().bodies.expect("are tracked");
    assert_eq!((bodies.distinct, bodies.most_calls), (40, 1));
}
