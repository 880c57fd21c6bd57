//! The search for secrets that ends each test: whatever a test did, no key stands in a log, an
//! answer, a metric or a row.
//!
//! Every key begins with `sk-`: those that Nightshift makes, and those that tests give to it or to
//! its upstreams. What people recognise a key by (`sk-ns-ab***wxyz`) is none.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Mutex, Once};
use std::time::Duration;

use super::session::Session;

/// What every key begins with.
const BEGINNING: &[u8] = b"sk-";
/// So much more follows of any key, at least. Less is found by chance in compressed bytes.
const REST_MIN: usize = 8;
/// What operators look at, and what anybody may.
const PAGES: [&str; 8] = [
    "/metrics",
    "/admin/status",
    "/readyz",
    "/version",
    "/v1/models",
    "/v1/files",
    "/v1/batches",
    "/nowhere",
];
/// A server that is cut off a moment later answers at once, or is not asked.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// The keys that stand in a text, in which a key begins where a word does.
pub fn keys_in(text: &[u8]) -> Vec<String> {
    let begins = |at: usize| at == 0 || !is_of_word(text[at - 1]);
    keys_where(text, begins)
}

/// The same of bytes, in which anything may stand in front of a key.
fn keys_in_bytes(bytes: &[u8]) -> Vec<String> {
    keys_where(bytes, |_| true)
}

fn keys_where(text: &[u8], begins: impl Fn(usize) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for at in memchr::memmem::find_iter(text, BEGINNING) {
        let rest = &text[at + BEGINNING.len()..];
        let length = rest.iter().take_while(|byte| is_of_word(**byte)).count();
        let is_masked = rest.get(length) == Some(&b'*');
        if begins(at) && length >= REST_MIN && !is_masked {
            let key = &text[at..at + BEGINNING.len() + length];
            found.push(String::from_utf8_lossy(key).into_owned());
        }
    }
    found
}

/// Fails where a key stands in a text. `what`: where that is.
pub fn search(what: &str, text: impl AsRef<[u8]>) {
    none_in(what, &keys_in(text.as_ref()));
}

fn none_in(what: &str, found: &[String]) {
    // A test that has failed already says why, and must not fail twice.
    if !std::thread::panicking() {
        assert!(found.is_empty(), "a key stands in {what}: {found:?}");
    }
}

/// What the servers of this process have logged with a key in it. Whose it was is not known: the
/// servers of all tests that run at the same time write to one log.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A log that is searched. Only lines with a key in them are kept.
pub struct Log(pub &'static Mutex<Vec<String>>);

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if !keys_in(line).is_empty() {
            let line = String::from_utf8_lossy(line).into_owned();
            self.0.lock().expect("no panic").push(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Has servers in this process log, and their log searched.
pub fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // A test may listen by itself.
        let _ = tracing_subscriber::fmt()
            .with_env_filter("info,nightshift=debug")
            .with_writer(|| Log(&LOGGED))
            .try_init();
    });
}

/// Fails where a key stands in the log of any server of this process.
pub fn search_log() {
    let found = std::mem::take(&mut *LOGGED.lock().expect("no panic"));
    if !std::thread::panicking() {
        assert!(found.is_empty(), "a key stands in a log: {found:?}");
    }
}

/// Searches what a server answers with to this key, and to nobody. It blocks.
pub fn search_pages(base: &str, key: &str) {
    for key in [Some(key), None] {
        for path in PAGES {
            let Ok(answer) = get(base, path, key) else {
                // The server is gone, or takes nobody.
                return;
            };
            search(path, answer);
        }
    }
}

/// An answer as it came: its head, too.
fn get(base: &str, path: &str, key: Option<&str>) -> std::io::Result<Vec<u8>> {
    let host = base.strip_prefix("http://").unwrap_or(base);
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
    let key = key.map_or(String::new(), |key| {
        format!("authorization: Bearer {key}\r\n")
    });
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {host}\r\n{key}connection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Searches all rows of a database that nobody uses any more, each column by itself.
pub async fn search_rows(database: &str) {
    let columns = if database.starts_with("sqlite") {
        "SELECT t.name, c.name, c.type = 'BLOB', 'CAST(' || c.name || ' AS BLOB)'
        FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type = 'table'"
    } else {
        "SELECT table_name::text, column_name::text, data_type = 'bytea', CASE data_type
            WHEN 'bytea' THEN quote_ident(column_name)
            ELSE 'convert_to(' || quote_ident(column_name) || '::text, ''UTF8'')' END
        FROM information_schema.columns WHERE table_schema = 'public'"
    };
    let mut session = Session::open(database).await;
    for (table, column, is_bytes, value) in session.rows::<Column>(columns).await {
        let sql = format!("SELECT {value} FROM {table} WHERE {column} IS NOT NULL");
        for (value,) in session.rows::<(Vec<u8>,)>(&sql).await {
            let found = if is_bytes {
                keys_in_bytes(&value)
            } else {
                keys_in(&value)
            };
            none_in(&format!("{table}.{column}"), &found);
        }
    }
}

/// A table, a column, whether bytes stand there, and how to ask for them.
type Column = (String, String, bool, String);

#[cfg(test)]
mod tests {
    use super::{keys_in, keys_in_bytes};

    #[test]
    fn keys_are_found_and_what_looks_like_one_is_not() {
        for text in [
            "Bearer sk-ns-0123456789abcdefghij",
            "{\"key\":\"sk-a-secret\"}",
            "sk-right-key",
        ] {
            assert_eq!(keys_in(text.as_bytes()).len(), 1, "{text}");
        }
        for text in [
            "sk-ns-ab***wxyz",
            "sk-***",
            "task-summaries",
            "sk-",
            "risk-averse",
            "sk-a b",
        ] {
            assert_eq!(keys_in(text.as_bytes()), [""; 0], "{text}");
        }
        assert_eq!(keys_in_bytes(b"7sk-upstream-7c1d").len(), 1);
    }
}
