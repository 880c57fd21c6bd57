//! What the log says when an upstream, or a model at an upstream, closes and opens.

use std::time::Duration;

use super::breaker::{Change, Closure};
use super::reason::Reason;

/// A wait for a rate limit that is worth a warning when it begins.
const WORTH_A_WARNING: Duration = Duration::from_mins(1);

/// Who is meant.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Subject<'a> {
    pub(in crate::upstream) upstream: &'a str,
    /// The upstream's address, without secrets.
    pub(in crate::upstream) url: &'a str,
    /// By which the upstream is called, where only this one of its keys is meant.
    pub(in crate::upstream) key: Option<&'a str>,
    /// `None`: all its models.
    pub(in crate::upstream) model: Option<&'a str>,
}

/// Logs a change. `status`: of the answer that brought the change.
pub(in crate::upstream) fn announce(subject: Subject<'_>, change: &Change, status: Option<u16>) {
    match change {
        Change::StillClosed => {}
        Change::Closed(closure) => closed(subject, closure, status),
        Change::Opened(closure) => opened(subject, closure),
    }
}

fn closed(subject: Subject<'_>, closure: &Closure, status: Option<u16>) {
    let Subject {
        upstream,
        url,
        key,
        model,
    } = subject;
    let what = subject.what();
    let wait = closure.until.saturating_duration_since(closure.since);
    let Closure { reason, cause, .. } = closure;
    if reason.needs_a_person() {
        tracing::error!(
            upstream.name = upstream,
            upstream.url = url,
            upstream.key = key,
            model.name = model,
            http.status = status,
            cause,
            check = reason.advice(),
            "the {what} is ejected: its lines wait or go to others, and one is \
             tried now and then, until it is mended"
        );
    } else if *reason != Reason::Limited || wait >= WORTH_A_WARNING {
        tracing::warn!(
            upstream.name = upstream,
            upstream.url = url,
            upstream.key = key,
            model.name = model,
            cause,
            wait = ?wait,
            "the {what} fails: its lines wait or go to others until it works again"
        );
    } else {
        tracing::debug!(
            upstream.name = upstream,
            upstream.url = url,
            upstream.key = key,
            model.name = model,
            cause,
            wait = ?wait,
            "limited"
        );
    }
}

fn opened(subject: Subject<'_>, closure: &Closure) {
    let Subject {
        upstream,
        url,
        key,
        model,
    } = subject;
    let what = subject.what();
    let after = closure.since.elapsed();
    if closure.reason == Reason::Limited && after < WORTH_A_WARNING {
        tracing::debug!(
            upstream.name = upstream,
            upstream.url = url,
            upstream.key = key,
            model.name = model,
            "not limited any more"
        );
    } else {
        tracing::warn!(
            upstream.name = upstream,
            upstream.url = url,
            upstream.key = key,
            model.name = model,
            calls.failed = closure.failures,
            after = ?after,
            "the {what} works again"
        );
    }
}

impl Subject<'_> {
    fn what(self) -> &'static str {
        match (self.model, self.key) {
            (Some(_), _) => "model",
            (None, Some(_)) => "key",
            (None, None) => "upstream",
        }
    }
}
