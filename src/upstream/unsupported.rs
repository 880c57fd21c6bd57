//! What a file's lines ask for, and no route takes: known when a batch is made, before any line is
//! sent.

use super::pool::Pool;
use super::route::Routes;
use crate::domain::endpoint::{self, ANY};
use crate::domain::findings::{Finding, Findings, first_lines};
use crate::domain::line::Fault;

impl Pool {
    /// A finding for each of the first lines that ask for what no route of their model takes: their
    /// endpoint, or a key of their body. `endpoint` and `task`: the batch's.
    #[must_use]
    pub fn unsupported(
        &self,
        found: &Findings,
        endpoint: &str,
        task: Option<&str>,
    ) -> Vec<Finding> {
        let mut faults = Vec::new();
        let groups = found.asked.groups();
        for group in groups.filter(|group| [group.endpoint.as_str(), ANY.path].contains(&endpoint))
        {
            let Some(routes) = self.resolve_for(task, &group.model) else {
                continue;
            };
            let refusal = |key: Option<&str>| refusal(&routes, &group.endpoint, key);
            let fault = |key, why: &str| Fault::unsupported(key, &group.model, why);
            if let Some(why) = refusal(None) {
                faults.push((fault(None, &why), group.lines()));
                continue;
            }
            for (key, lines) in group.keys() {
                if let Some(why) = refusal(Some(key)) {
                    faults.push((fault(Some(key), &why), lines));
                }
            }
        }
        let kinds = faults.iter().enumerate();
        let lines = first_lines(kinds.map(|(kind, (_, lines))| (kind, *lines)));
        let lines = lines.into_iter();
        lines
            .map(|(line, kind)| Finding::of_line(line, faults[kind].0.clone()))
            .collect()
    }

    /// Whether all routes of a file's models say how much the model may write, where the lines'
    /// endpoint wants to know and lines need not say it. `endpoint` and `task`: the batch's.
    #[must_use]
    pub fn fills_in_limits(&self, found: &Findings, endpoint: &str, task: Option<&str>) -> bool {
        let mut groups = found.asked.groups().filter(|group| {
            [group.endpoint.as_str(), ANY.path].contains(&endpoint)
                && endpoint::find(&group.endpoint).is_some_and(|own| own.limit.is_some())
        });
        groups.all(|group| {
            let routes = self.resolve_for(task, &group.model);
            routes.is_some_and(|routes| fill_in_limit(&routes))
        })
    }
}

/// Whether the routes say how much the model may write.
fn fill_in_limit(routes: &Routes) -> bool {
    let mut targets = routes.targets.iter();
    targets.all(|target| {
        let edit = target.edit.as_ref();
        edit.is_some_and(|edit| edit.max_output(None).is_some())
    })
}

/// Why none of the routes takes a line of this `url` (`None`), or none whose body has this key at
/// its top, whatever its value asks for: in words, of the first route. `None`: one may.
fn refusal(routes: &Routes, path: &str, key: Option<&str>) -> Option<String> {
    let mut first = None;
    for target in &routes.targets {
        let mut edit = target.edit.iter();
        let is_written_over = key.is_some_and(|key| edit.any(|edit| edit.writes_over(key)));
        let model = target.backends().next()?.model();
        let reason = target.client.refuses(model, path, key);
        let reason = reason.filter(|_| !is_written_over)?;
        first.get_or_insert(reason);
    }
    first
}
