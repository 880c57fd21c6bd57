//! The real binary on a terminal: what stands on the screen.

use std::num::NonZeroU16;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};

use pty_process::{Command, OwnedWritePty, Size};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::task::JoinHandle;
use vt100::Parser;

use super::binary::{BINARY, is_callers_own};
use super::{PATIENCE, eventually};

const ROWS: u16 = 24;

/// A command that runs on a terminal. Dropped, it is killed.
pub struct Terminal {
    child: Child,
    keyboard: OwnedWritePty,
    shown: Arc<Mutex<Shown>>,
    /// Ends where nobody has the terminal any more.
    reads: JoinHandle<()>,
}

struct Shown {
    screen: Parser,
    bytes: Vec<u8>,
}

impl Terminal {
    /// Starts a command of the real binary in a directory, on a terminal of so many columns.
    pub fn start(
        directory: &std::path::Path,
        columns: u16,
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> Terminal {
        let (pty, pts) = pty_process::open().expect("opens a terminal");
        pty.resize(Size::new(ROWS, columns)).expect("has a size");
        let mut command = Command::new(BINARY)
            .args(args)
            .current_dir(directory)
            .env("TERM", "xterm-256color")
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            if is_callers_own(&name) || ["NO_COLOR", "CLICOLOR"].iter().any(|own| name == *own) {
                command = command.env_remove(name);
            }
        }
        let command = command.envs(variables.iter().copied());
        let child = command.spawn(pts).expect("starts");
        let rows = NonZeroU16::new(ROWS).expect("is not 0");
        let columns = NonZeroU16::new(columns).expect("is not 0");
        let shown = Arc::new(Mutex::new(Shown {
            screen: Parser::new(rows, columns, 0),
            bytes: Vec::new(),
        }));
        let (screen, keyboard) = pty.into_split();
        let reads = tokio::spawn(read(screen, Arc::clone(&shown)));
        Terminal {
            child,
            keyboard,
            shown,
            reads,
        }
    }

    /// The rows of the screen, without spaces at their ends, and without those that are empty at
    /// the screen's end.
    pub fn rows(&self) -> Vec<String> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let screen = shown.screen.screen();
        let rows = screen.rows(0, screen.size().1.get());
        let mut rows: Vec<String> = rows.map(|row| row.trim_end().to_owned()).collect();
        while rows.last().is_some_and(String::is_empty) {
            rows.pop();
        }
        rows
    }

    /// Whether a row goes on in the next one. (Those of a bar do: it fills its rows with spaces.)
    pub fn has_wrapped(&self) -> bool {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let screen = shown.screen.screen();
        (0..ROWS).any(|row| screen.row_wrapped(row))
    }

    /// Waits until the rows of the screen are as they are to be.
    pub async fn until(&self, what: &str, holds: impl Fn(&[String]) -> bool) -> Vec<String> {
        eventually(what, async || {
            let rows = self.rows();
            if holds(&rows) {
                Ok(rows)
            } else {
                Err(rows.join("\n"))
            }
        })
        .await
    }

    /// All that was written so far, with what steers the terminal.
    pub fn bytes(&self) -> String {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&shown.bytes).into_owned()
    }

    /// Presses keys.
    pub async fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).await.expect("takes keys");
    }

    /// Waits for the command's end, and for all that it has written.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = async {
            let status = self.child.wait().await.expect("can be waited for");
            (&mut self.reads).await.expect("can be read");
            status
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        ended.expect("ends in time")
    }
}

async fn read(mut screen: pty_process::OwnedReadPty, shown: Arc<Mutex<Shown>>) {
    let mut bytes = Vec::with_capacity(8 << 10);
    // Linux answers with an error once nobody has the terminal open any more.
    while screen.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.screen.process(&bytes);
        shown.bytes.append(&mut bytes);
    }
}
