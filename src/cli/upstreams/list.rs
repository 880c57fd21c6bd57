//! The upstreams, listed.

use serde::Serialize;

use crate::api::admin::{Status, UpstreamStatus, WindowStatus};
use crate::api::upstreams::in_words;
use crate::cli::figures::moment;
use crate::cli::status::picture;
use crate::cli::table::{Column, Table};

/// How an upstream is. What only a server knows is `None` where the database was asked.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    pub(super) name: String,
    /// As a server sees it, or `enabled` or `disabled`.
    pub(super) state: String,
    /// Why it gets no lines, in words.
    pub(super) cause: Option<String>,
    /// Calls that the server which was asked has in flight.
    pub(super) in_flight: Option<usize>,
    /// How many it may have.
    pub(super) share: Option<usize>,
    /// How many all servers may have together.
    pub(super) limit: usize,
    /// Who has enabled or disabled it last while it was in use, and when in Unix seconds.
    pub(super) changed_by: Option<String>,
    pub(super) changed_at: Option<i64>,
    /// How many calls at once there may be, where that is found out.
    pub(super) windows: Vec<WindowStatus>,
}

/// Why an upstream is not up, and who may have calls in flight there where that is waited for.
fn cause(upstream: &UpstreamStatus) -> Option<String> {
    let cause = upstream.cause.clone()?;
    Some(if upstream.waits_for.is_empty() {
        cause
    } else {
        format!("{cause}; not drained by {}", in_words(&upstream.waits_for))
    })
}

/// As a server answers.
pub(super) fn of_server(status: Status) -> Vec<Listed> {
    let upstreams = status.upstreams.into_iter();
    let windows = status.windows;
    let listed = upstreams.map(|upstream| Listed {
        windows: {
            let of_it = windows.iter().filter(|one| one.upstream == upstream.name);
            of_it.cloned().collect()
        },
        cause: cause(&upstream),
        name: upstream.name,
        state: upstream.state,
        in_flight: Some(upstream.in_flight),
        share: Some(upstream.share),
        limit: upstream.limit,
        changed_by: upstream.changed_by,
        changed_at: upstream.changed_at,
    });
    listed.collect()
}

pub(super) fn table(upstreams: &[Listed], width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::cut("UPSTREAM"),
        Column::whole("STATE"),
        Column::whole("CALLS"),
        Column::whole("SHARE"),
        Column::whole("LIMIT"),
        Column::cut("SET BY").leaves(2),
        Column::whole("SET AT (UTC)").leaves(1),
        Column::cut("CAUSE"),
    ]);
    let number = |count: Option<usize>| count.map_or("-".to_owned(), |count| count.to_string());
    for upstream in upstreams {
        let state = match upstream.state.as_str() {
            "unknown" => "not called yet",
            state => state,
        };
        table.row([
            upstream.name.clone(),
            state.to_owned(),
            number(upstream.in_flight),
            number(upstream.share),
            upstream.limit.to_string(),
            upstream.changed_by.clone().unwrap_or_default(),
            upstream.changed_at.map(moment).unwrap_or_default(),
            upstream.cause.clone().unwrap_or_default(),
        ]);
    }
    let mut text = String::new();
    table.write(&mut text, width);
    let windows: Vec<WindowStatus> = upstreams
        .iter()
        .flat_map(|upstream| upstream.windows.clone())
        .collect();
    picture::windows(&windows).write(&mut text, width);
    text
}
