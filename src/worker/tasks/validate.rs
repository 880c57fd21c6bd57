//! Validation of batches, from what the upload already knows, in milliseconds.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;

use super::attempts::Attempts;
use super::task::{Look, Next, Task};
use crate::domain::current::Current;
use crate::domain::findings::{self, Finding, Supplied, first_lines};
use crate::domain::line::Fault;
use crate::domain::tenant::{Allowance, CurrentTenants, Tenants};
use crate::metrics::trace;
use crate::store::{self, Begun, DirectLease, Input, Store, Unvalidated, Verdict, Who};
use crate::upstream::Pool;
use crate::worker::supply::direct::DirectLeases;
use crate::worker::work::settings::Rules;

/// Units that the small batches of one transaction have together.
const UNITS_PER_GROUP: i64 = 5_000;
/// Large batches that get some of their units in one round. In each round the small batches come
/// first.
const LARGE_PER_ROUND: usize = 4;
/// Others are notified of units that this process has not leased by then, of the batches that it
/// has let run.
const NOTIFIED_AFTER: Duration = Duration::from_millis(100);

pub(crate) struct Validate {
    store: Store,
    pool: Arc<Pool>,
    direct: Arc<DirectLeases>,
    rules: Current<Rules>,
    tenants: CurrentTenants,
    /// Batches that run since these moments, and of which others are not notified yet.
    unannounced: VecDeque<(Instant, String)>,
    /// Batches that could not be settled. Each is tried by itself, so that it holds up no other.
    failing: HashSet<String>,
}

/// A batch with its verdict.
struct Validated {
    batch: Unvalidated,
    verdict: Verdict,
    /// Ends when the batch is settled.
    _span: Span,
}

impl Task for Validate {
    const NAME: &'static str = "validate";
    const TICK: Duration = Duration::from_secs(2);
    const WHO: Option<Who> = Some(Who::Validators);

    async fn round(&mut self, _: Look) -> store::Result<Next> {
        self.notify_others().await?;
        let batches = self.store.unvalidated().await?;
        if batches.is_empty() {
            self.failing.clear();
            return Ok(self.rest());
        }
        let is_full = batches.len() >= Unvalidated::AT_ONCE;
        // The first batch may come before the upstreams have said what models they have.
        self.pool.discovered().await;
        let tenants = self.tenants.get();
        let validated: Vec<Validated> = batches
            .into_iter()
            .map(|batch| self.validated(batch, &tenants))
            .collect();
        let (failing, well): (Vec<_>, Vec<_>) = validated
            .into_iter()
            .partition(|validated| self.failing.contains(&validated.batch.batch_id));
        let (small, large): (Vec<_>, Vec<_>) =
            well.into_iter().partition(Validated::is_settled_at_once);
        let has_more = is_full || !large.is_empty() || !failing.is_empty();
        let mut attempts = Attempts::default();
        for group in into_groups(small) {
            self.settle(group, &mut attempts).await?;
        }
        for validated in large.into_iter().take(LARGE_PER_ROUND).chain(failing) {
            self.settle_one(&validated, &mut attempts).await?;
        }
        let have_failed = attempts.have_failed();
        if attempts.finish()? && (has_more || have_failed) {
            return Ok(Next::AtOnce);
        }
        Ok(self.rest())
    }
}

impl Validate {
    pub(crate) fn new(
        store: Store,
        pool: Arc<Pool>,
        direct: Arc<DirectLeases>,
        rules: Current<Rules>,
        tenants: CurrentTenants,
    ) -> Validate {
        Validate {
            store,
            pool,
            direct,
            rules,
            tenants,
            unannounced: VecDeque::new(),
            failing: HashSet::new(),
        }
    }

    /// When there is something to do again.
    fn rest(&self) -> Next {
        match self.unannounced.front() {
            Some((since, _)) => Next::After(NOTIFIED_AFTER.saturating_sub(since.elapsed())),
            None => Next::Later,
        }
    }

    /// Notifies the other processes where they have a reason to look: this process had time to
    /// lease the units of the batches that it let run, and has left some.
    async fn notify_others(&mut self) -> store::Result<()> {
        let due = |(since, _): &(Instant, String)| since.elapsed() >= NOTIFIED_AFTER;
        let due = self
            .unannounced
            .iter()
            .take_while(|unannounced| due(unannounced))
            .count();
        if due == 0 {
            return Ok(());
        }
        let batches: Vec<String> = self
            .unannounced
            .drain(..due)
            .map(|(_, batch)| batch)
            .collect();
        if self.store.any_waits(&batches).await? {
            self.store.wake_others(Who::Supplies);
        }
        Ok(())
    }

    fn on_begun<'a>(&mut self, batches: impl Iterator<Item = &'a str>) {
        let now = Instant::now();
        self.unannounced
            .extend(batches.map(|batch| (now, batch.to_owned())));
    }

    /// Settles a group in one transaction, or each batch by itself where that fails.
    async fn settle(
        &mut self,
        group: Vec<Validated>,
        attempts: &mut Attempts,
    ) -> store::Result<()> {
        let verdicts: Vec<_> = group
            .iter()
            .map(|validated| (&validated.batch, &validated.verdict))
            .collect();
        let direct = Arc::clone(&self.direct);
        let accepted = group.iter().filter(|validated| validated.is_accepted());
        let chosen = direct.choose(accepted.map(|validated| &validated.batch));
        let owner = direct.owner();
        let lease = DirectLease {
            owner: &owner,
            batches: &chosen.ids,
        };
        let turn = direct.turn().await;
        match self.store.settle_batches(&verdicts, Some(lease)).await {
            Ok(settled) => {
                let batches = group.iter().map(|validated| &validated.batch);
                direct.hand_over(settled.leased, &chosen, batches);
                drop(turn);
                if settled.settled > 0 {
                    attempts.succeeded();
                }
                self.on_begun(settled.waiting.iter().map(String::as_str));
            }
            Err(error) if group.len() > 1 && (!error.is_outage() || error.is_timeout()) => {
                tracing::warn!(%error, "batches could not be settled together; one at a time");
                drop(turn);
                for validated in &group {
                    self.settle_one(validated, attempts).await?;
                }
            }
            Err(error) => {
                self.take::<()>(&group[0], Err(error), attempts)?;
            }
        }
        Ok(())
    }

    /// Settles a batch by itself, or gives it some more of its units.
    async fn settle_one(
        &mut self,
        validated: &Validated,
        attempts: &mut Attempts,
    ) -> store::Result<()> {
        let Validated { batch, verdict, .. } = validated;
        let settled = match verdict {
            Verdict::Accepted { model } => {
                let begun = self.store.begin_batch(batch, model.as_deref()).await;
                if let Ok(Begun::Runs) = begun {
                    self.on_begun([batch.batch_id.as_str()].into_iter());
                }
                begun.map(|begun| begun != Begun::Elsewhere)
            }
            Verdict::Rejected { .. } => {
                let settled = self.store.settle_batches(&[(batch, verdict)], None).await;
                settled.map(|settled| settled.settled > 0)
            }
        };
        if let Some(is_settled) = self.take(validated, settled, attempts)? {
            if is_settled {
                attempts.succeeded();
            }
            self.failing.remove(&batch.batch_id);
        }
        Ok(())
    }

    /// Takes in how it went for a batch. `None`: it failed, and the others go on.
    fn take<T>(
        &mut self,
        validated: &Validated,
        attempt: store::Result<T>,
        attempts: &mut Attempts,
    ) -> store::Result<Option<T>> {
        let id = &validated.batch.batch_id;
        attempts.take(attempt, |error| {
            tracing::error!(batch.id = id, %error, "a batch cannot be settled; the others go on");
            self.failing.insert(id.clone());
        })
    }

    fn validated(&self, mut batch: Unvalidated, tenants: &Tenants) -> Validated {
        let allowance = tenants.of(&batch.tenant);
        batch.allowance = allowance.limits_enqueued().then(|| Arc::clone(allowance));
        let span = tracing::trace_span!(
            target: trace::TARGET,
            parent: None,
            "validate batch",
            batch.id = batch.batch_id,
            batch.total = batch.input.as_ref().map(|input| input.requests),
        );
        let faults = span.in_scope(|| self.findings(&batch, allowance));
        let verdict = if faults.is_empty() {
            Verdict::Accepted {
                model: only_model(&batch),
            }
        } else {
            let errors = serde_json::to_string(&faults).unwrap_or_else(|_| "[]".to_owned());
            Verdict::Rejected { errors }
        };
        Validated {
            batch,
            verdict,
            _span: span,
        }
    }

    /// All that is wrong with a batch, as OpenAI lists it.
    fn findings(&self, batch: &Unvalidated, allowance: &Allowance) -> Vec<Finding> {
        let Some(input) = &batch.input else {
            let id = &batch.input_file_id;
            let mut message = format!(
                "Cannot find file {id}, or organization {} does not have access to it.",
                batch.tenant
            );
            if let Some(purpose) = &batch.other_purpose {
                message.push_str(&format!(
                    " There is a file of that id, but its purpose is '{purpose}': upload it again \
                     with the purpose 'batch'."
                ));
            }
            let finding = Finding::of_file("invalid_request", &message, Some("file_id"));
            return vec![finding];
        };
        if input.requests == 0 {
            return vec![Finding::of_file(
                "empty_file",
                "The input file is empty. Please ensure that your batch contains at least one \
                 request.",
                None,
            )];
        }
        let mut of_file = Vec::new();
        let max_requests = self.rules.get().max_requests;
        if input.requests as u64 > max_requests {
            of_file.push(Finding::of_file(
                "too_many_requests",
                &format!(
                    "The input file has {} requests; a batch may have at most {}.",
                    input.requests, max_requests
                ),
                None,
            ));
        }
        let task = batch.task.as_deref();
        let found = &input.findings;
        let supplied = Supplied {
            model: task.is_some(),
            limit: self.pool.fills_in_limits(found, &batch.endpoint, task),
        };
        let of_lines = found.for_batch(&batch.endpoint, supplied);
        let unknown = self.unknown_models(input, task, allowance);
        let unsupported = self.pool.unsupported(found, &batch.endpoint, task);
        findings::report([of_file, of_lines, unknown, unsupported])
    }

    /// A finding for each of the first lines whose model no route serves, or the tenant may not
    /// use, or the batch's task does not have.
    fn unknown_models(
        &self,
        input: &Input,
        task: Option<&str>,
        allowance: &Allowance,
    ) -> Vec<Finding> {
        let may_use = |model: &str| match self.pool.models_of_task(task.unwrap_or(model)) {
            // The models of a task do what its lines ask for, so all of them must be allowed.
            Some(models) => models.iter().all(|model| allowance.may_use(model)),
            None => allowance.may_use(model),
        };
        let has_task = task.is_none_or(|task| self.pool.models_of_task(task).is_some());
        let unknown = input.models.iter().filter(|model| {
            !has_task || !may_use(&model.name) || self.pool.resolve_for(task, &model.name).is_none()
        });
        let unknown = unknown.map(|model| (model.name.as_str(), model.first_lines.as_slice()));
        let fault = |model: &str| match task {
            Some(task) if !has_task || !may_use(model) => Fault::invalid_task(task, None),
            Some(task) => Fault::invalid_task(task, Some(model)),
            None => Fault::model_not_found(model),
        };
        let lines = first_lines(unknown).into_iter();
        lines
            .map(|(line, model)| Finding::of_line(line, fault(model)))
            .collect()
    }
}

/// The model that all lines name, if there is one.
fn only_model(batch: &Unvalidated) -> Option<String> {
    match &*batch.input.as_ref()?.models {
        [model] if !model.name.is_empty() => Some(model.name.clone()),
        _ => None,
    }
}

impl Validated {
    fn is_accepted(&self) -> bool {
        matches!(self.verdict, Verdict::Accepted { .. })
    }

    /// Whether it takes no more than one transaction: a refusal, or few units.
    fn is_settled_at_once(&self) -> bool {
        matches!(self.verdict, Verdict::Rejected { .. }) || self.batch.is_small()
    }
}

/// Divides batches into groups that one transaction makes the units of.
fn into_groups(batches: Vec<Validated>) -> Vec<Vec<Validated>> {
    let mut groups: Vec<Vec<Validated>> = Vec::new();
    let mut units = 0;
    for validated in batches {
        let its_units = match validated.verdict {
            Verdict::Accepted { .. } => validated.batch.units_max(),
            Verdict::Rejected { .. } => 0,
        };
        units += its_units;
        match groups.last_mut() {
            Some(group) if units <= UNITS_PER_GROUP => group.push(validated),
            _ => {
                units = its_units;
                groups.push(vec![validated]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::findings::KEPT_MAX;

    #[test]
    fn of_many_unknown_models_the_first_lines_are_kept() {
        // The lines of each model stand among those of the others.
        let models: Vec<(String, Vec<u64>)> = (0..1000)
            .map(|no| {
                (
                    format!("m-{no}"),
                    (0..101).map(|at| at * 1000 + 1000 - no).collect(),
                )
            })
            .collect();
        let found = first_lines(models.iter().map(|(name, lines)| (&**name, &**lines)));
        assert_eq!(found.len(), KEPT_MAX);
        for (line, &(found, model)) in (1..).zip(&found) {
            assert_eq!(
                (found, model.to_owned()),
                (line, format!("m-{}", 1000 - line))
            );
        }
        assert_eq!(first_lines::<usize>(std::iter::empty()), []);
    }
}
