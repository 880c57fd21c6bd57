//! A run that stops before its batch has ended: what becomes of it, and of the run before it.

use std::path::PathBuf;
use std::process::ExitCode;

use super::args::RunArgs;
use super::journal::Journal;
use super::places::Places;
use super::report::Report;
use super::result::partial;
use super::summary::Summary;
use super::watch::Stopped;
use super::words::Words;
use crate::cli::exit::{FAILED, NO_ANSWER, OrExit as _, READER_GONE};
use crate::shutdown::Stop;
use crate::store::Batch;

/// What the next command finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The run, to go on with.
    ThisRun,
    /// The run before it: this one came to nothing.
    EarlierRun,
}

/// Decides whether a run that ends without its files has an answer. If not, the run whose place
/// this one was to take has its place again.
fn settle(mut journal: Journal, batch: Option<&Batch>) -> anyhow::Result<Standing> {
    let counts = batch.map(|batch| batch.counts).unwrap_or_default();
    if journal.has_answers(counts) {
        journal.forget_earlier()?;
        return Ok(Standing::ThisRun);
    }
    give_back(journal)
}

/// Gives the run before it its place again, if there is one.
pub(super) fn give_back(journal: Journal) -> anyhow::Result<Standing> {
    Ok(match journal.into_earlier() {
        Some(earlier) => {
            earlier.write()?;
            earlier.remove_strays();
            Standing::EarlierRun
        }
        None => Standing::ThisRun,
    })
}

/// What a run that has stopped leaves.
pub(super) struct Left<'a> {
    pub(super) args: &'a RunArgs,
    pub(super) places: &'a Places,
    pub(super) words: &'a Words,
    pub(super) batch: Option<&'a Batch>,
    /// The file that has the answers so far.
    pub(super) partial: Option<PathBuf>,
}

impl Left<'_> {
    /// Settles which run the next command finds. A run with answers has taken the earlier run's
    /// place for good; a run without gives the place back. Then this says why the run has stopped
    /// and what the next command finds.
    ///
    /// # Errors
    /// The fault for which the run has stopped, or one of the files.
    pub(super) fn tell(
        self,
        stopped: Stopped,
        journal: Journal,
        stop: &Stop,
        report: &Report,
    ) -> anyhow::Result<ExitCode> {
        let kept = journal.kept();
        let standing = settle(journal, self.batch)?;
        if standing == Standing::ThisRun && self.args.restart && self.partial.is_none() {
            // It has the answers of the earlier run.
            partial::remove(&self.places.output);
        }
        let lost = self.what_is_lost(standing);
        let next = self.next(standing);
        let words = self.words;
        let interrupted = matches!(stopped, Stopped::Interrupted);
        let (reason, outcome) = match stopped {
            Stopped::Interrupted => {
                self.args.say(&format!("Interrupted. {next}."));
                let reason = "interrupted by a signal".to_owned();
                (reason, Ok(ExitCode::from(stop.code())))
            }
            Stopped::ReaderGone(target) => {
                let reason = format!("the reader of {target} has gone");
                (reason, Ok(ExitCode::from(READER_GONE)))
            }
            Stopped::TooManyFailed(count) => failed(
                format!(
                    "stopped, because {count} requests have failed since this start \
                     (--max-failures){}. {lost}{next}",
                    match standing {
                        Standing::ThisRun => "; --retry-failed sends them again",
                        Standing::EarlierRun => "",
                    }
                ),
                FAILED,
            ),
            Stopped::Hopeless(cause) => failed(
                format!(
                    "stopped, because no request can succeed: {}. {lost}{next}",
                    words.in_flags(&cause)
                ),
                NO_ANSWER,
            ),
            Stopped::Silent { seconds, causes } => failed(
                format!(
                    "no upstream has answered within {seconds} s ({}). {lost}{next}",
                    words.in_flags(&causes)
                ),
                NO_ANSWER,
            ),
            Stopped::Fault(error) => (format!("{error:#}"), Err(error)),
        };
        if let Some(partial) = &self.partial {
            self.args
                .say(&format!("The answers so far: {}", partial.display()));
        }
        let status = if interrupted {
            "interrupted"
        } else {
            "stopped"
        };
        let summary = Summary::new(status, self.batch, kept, report.elapsed()).because(reason);
        report.print(&summary)?;
        outcome
    }

    fn what_is_lost(&self, standing: Standing) -> &'static str {
        match standing {
            // The answers of the earlier run were given up.
            Standing::ThisRun if self.args.restart => "What was answered is kept. ",
            _ => "Nothing was lost. ",
        }
    }

    fn next(&self, standing: Standing) -> String {
        let output = self.places.output.file().filter(|file| file.exists());
        match standing {
            Standing::EarlierRun => {
                let answers = match output {
                    Some(_) => format!(", and {} has its answers", self.places.output),
                    None => String::new(),
                };
                format!("No request was answered, so the earlier run is as it was{answers}")
            }
            Standing::ThisRun => {
                let go_on = capitalized(&self.places.how_to_go_on(self.args.restart));
                match output.filter(|_| self.args.restart) {
                    Some(_) => format!(
                        "{go_on}. Until then {} has the answers of the earlier run",
                        self.places.output
                    ),
                    None => go_on,
                }
            }
        }
    }
}

fn failed(text: String, code: u8) -> (String, anyhow::Result<ExitCode>) {
    let error = anyhow::anyhow!(text.clone());
    (text, Err(error).or_exit(code))
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_uppercase().chain(characters).collect(),
        None => String::new(),
    }
}
