//! The real binary, as a process.

use std::ffi::OsStr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::PATIENCE;
use super::secrets::search;

/// How a server is to be started as a process.
#[derive(Default)]
pub struct Launch {
    flags: Vec<String>,
    variables: Vec<(String, String)>,
    words: String,
}

impl Launch {
    pub fn new() -> Launch {
        Launch::default()
    }

    pub fn flags(mut self, flags: &[&str]) -> Launch {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// Variables of its environment. The last one of a name counts.
    pub fn variables(mut self, variables: &[(&str, &str)]) -> Launch {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        self.variables.extend(variables.iter().map(owned));
        self
    }

    /// A shell's words before the command, such as `ulimit -n 100;`.
    pub fn after(mut self, words: &str) -> Launch {
        words.clone_into(&mut self.words);
        self
    }

    /// This, and then that.
    pub fn and(mut self, other: Launch) -> Launch {
        self.flags.extend(other.flags);
        self.variables.extend(other.variables);
        self.words += &other.words;
        self
    }

    /// Starts `nightshift serve`, on a free port if nothing else is said, and waits until it
    /// listens.
    pub async fn start(self) -> Binary {
        let mut command = match self.words.as_str() {
            "" => command(&["serve"]),
            words => command_after(words, &["serve"]),
        };
        command
            .env("NIGHTSHIFT_SERVER__LISTEN", "127.0.0.1:0")
            .args(self.flags)
            .envs(self.variables);
        Binary::listening(Process::start(command, b"")).await
    }
}

/// A server that is a process of its own. Dropped, it is killed.
pub struct Binary {
    pub base: String,
    process: Process,
}

impl Binary {
    /// Starts a server with these flags and variables.
    pub async fn serve(flags: &[&str], variables: &[(&str, &str)]) -> Binary {
        let launch = Launch::new().flags(flags).variables(variables);
        launch.start().await
    }

    /// Waits until a server that was started listens.
    pub async fn listening(mut process: Process) -> Binary {
        match process.line().await {
            Some(line) => {
                let base = line
                    .strip_prefix("Listening on ")
                    .expect("says where")
                    .to_owned();
                Binary { base, process }
            }
            None => panic!("it did not start: {}", process.ended().await.errors),
        }
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills it, as a power cut would, without waiting for the runtime.
    pub fn cut_off(mut self) {
        let child = &mut self.process.child;
        // It may have ended already.
        let _ = child.start_kill();
        while child.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asks it to stop, expects that it does so well, and returns its log.
    pub async fn terminate(self) -> String {
        self.signal("TERM");
        let ended = self.ended().await;
        assert_eq!(
            ended.code,
            Some(0),
            "it does not stop well: {}",
            ended.errors
        );
        ended.errors
    }

    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits until its log has a text.
    pub async fn says(&mut self, text: &str) {
        self.process.says(text).await;
    }

    pub async fn ended(self) -> Ended {
        self.process.ended().await
    }
}

/// A command that runs. Dropped, it is killed.
pub struct Process {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    /// What it has written to standard error so far.
    said: watch::Receiver<Vec<u8>>,
    /// Ends where standard error does.
    errors: Option<JoinHandle<()>>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// `None`: by a signal.
    pub code: Option<i32>,
    /// What it wrote to standard output and was not read before.
    pub out: String,
    pub errors: String,
}

impl Process {
    /// Starts a command, with all of its standard input.
    pub fn start(mut command: Command, input: &[u8]) -> Process {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("starts");
        let (mut stdin, input) = (child.stdin.take().expect("is piped"), input.to_owned());
        tokio::spawn(async move {
            // It need not want all of it.
            let _ = stdin.write_all(&input).await;
        });
        let mut errors = child.stderr.take().expect("is piped");
        let (says, said) = watch::channel(Vec::new());
        let errors = tokio::spawn(async move {
            let mut bytes = Vec::with_capacity(8 << 10);
            while errors.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                says.send_modify(|said| said.append(&mut bytes));
            }
        });
        let out = BufReader::new(child.stdout.take().expect("is piped")).lines();
        Process {
            child,
            out,
            said,
            errors: Some(errors),
        }
    }

    /// The next line of its standard output; `None` where that has ended.
    pub async fn line(&mut self) -> Option<String> {
        let line = tokio::time::timeout(PATIENCE, self.out.next_line()).await;
        line.expect("says something in time").expect("can be read")
    }

    /// Waits until its standard error has a text.
    pub async fn says(&mut self, text: &str) {
        let has_text = |said: &Vec<u8>| String::from_utf8_lossy(said).contains(text);
        let said = tokio::time::timeout(PATIENCE, self.said.wait_for(has_text)).await;
        assert!(matches!(said, Ok(Ok(_))), "it does not say {text}");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("can be waited for").is_none()
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("runs")
    }

    pub fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &id])
            .status();
        assert!(sent.expect("runs kill").success());
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Ended {
        let mut out = String::new();
        while let Some(line) = self.line().await {
            out.push_str(&line);
            out.push('\n');
        }
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status: ExitStatus = status.expect("ends in time").expect("can be waited for");
        if let Some(errors) = self.errors.take() {
            errors.await.expect("can be read");
        }
        let errors = String::from_utf8_lossy(&self.said.borrow()).into_owned();
        Ended {
            code: status.code(),
            out,
            errors,
        }
    }
}

/// No key stands in what it has written to standard error.
impl Drop for Process {
    fn drop(&mut self) {
        search("a log", &*self.said.borrow());
    }
}

/// Runs a command to its end, with nothing on its standard input.
pub async fn ended(command: Command) -> Ended {
    Process::start(command, b"").ended().await
}

/// A command of the real binary, free of the caller's own settings.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args);
    free(&mut command);
    command
}

/// The same with a shell's words before it, such as `ulimit -n 100;`.
pub fn command_after(words: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{words} exec \"$0\" \"$@\""), BINARY]);
    command.args(args);
    free(&mut command);
    command
}

pub(super) const BINARY: &str = env!("CARGO_BIN_EXE_nightshift");

fn free(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if is_callers_own(&name) {
            command.env_remove(name);
        }
    }
}

/// Whether a variable is a setting of whoever runs the tests, which a command must not see.
pub(super) fn is_callers_own(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let prefixes = ["NIGHTSHIFT_", "OPENAI_"];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || name == "DATABASE_URL"
}
