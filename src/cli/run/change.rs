//! How a run differs from the one before it.

use super::input::reshape::Reshape;
use super::journal::Journal;

/// What has changed since an earlier run, of what the requests are made of.
pub(super) struct Change {
    input: bool,
    /// Flags that change requests.
    flags: Vec<String>,
}

impl Change {
    pub(super) fn since(journal: &Journal, input_sha256: &str, reshape: &Reshape) -> Change {
        Change {
            input: !journal.is_on(input_sha256),
            flags: reshape.differences(journal.reshape()),
        }
    }

    pub(super) fn is_some(&self) -> bool {
        self.input || !self.flags.is_empty()
    }

    /// `The input has changed`, `--model and --set top_p have changed`.
    pub(super) fn in_words(&self) -> String {
        let mut things: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        if self.input {
            things.insert(0, "The input");
        }
        match things.split_last() {
            None => "Nothing has changed".to_owned(),
            Some((only, [])) => format!("{only} has changed"),
            Some((last, others)) => format!("{} and {last} have changed", others.join(", ")),
        }
    }

    /// Why none of the answers that there are can be kept.
    pub(super) fn keeps_nothing(&self, journal: &Journal) -> String {
        let state = journal.state().display();
        if self.input && self.flags.is_empty() {
            return format!(
                "{state} belongs to a run on another input, of which no line is in this one; use \
                 another output, or --restart to throw its answers away"
            );
        }
        format!(
            "{}, so that no answer of the earlier run ({state}) is to a request of this one; give \
             what the earlier run was given, use another output, or --restart to throw its answers \
             away",
            self.in_words()
        )
    }
}
