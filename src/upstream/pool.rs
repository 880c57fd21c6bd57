//! The door of the room: who serves a model, whether a line can be sent now, one call, and how all
//! upstreams are.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::attempt::ages::OldCalls;
use super::attempt::call::{self, Attempt, Call};
use super::attempt::history::History;
use super::attempt::question;
use super::attempt::timer::Timer;
use super::attempt::trial::{self, Trial, Way};
use super::health::probe::{self, Probes, Tried};
use super::limits::concurrency::{Limits, Sharing};
use super::limits::interval::Interval;
use super::limits::memory::Budget;
use super::limits::rate::{RateLimits, RateRequest};
use super::models::ModelInfo;
use super::route::Routes;
use super::settings::{BuildError, Options, Settings, Spill};
use super::setup::Current;
use super::snapshot::{self, LaneStatus, UpstreamStatus};
use super::target::backend::Backends;
use super::target::{Acquired, Permit, Reach, Targets};
use crate::domain::clock::{self, Clock};
use crate::domain::reuse::{Key, Mode};

/// All upstreams of a process.
#[derive(Debug)]
pub struct Pool {
    current: Arc<Current>,
    targets: Arc<Targets>,
    probes: Probes,
    interval: Interval,
    budget: Arc<Budget>,
    clock: Clock,
    created_ms: i64,
    /// Held by who puts other settings in the place of those before.
    reload: Mutex<()>,
}

impl Pool {
    /// Reads CA files and makes a client for each upstream; nothing is called yet.
    ///
    /// # Errors
    /// When the settings of an upstream cannot work.
    pub fn new(settings: &Settings, options: Options) -> Result<Arc<Self>, BuildError> {
        let backends = Arc::new(Backends::default());
        let current = Arc::new(Current::new(Arc::clone(&backends)));
        let none = Arc::new(Limits::new(&[], &[], &[], None));
        let targets = Arc::new(Targets::new(
            backends,
            (none, settings.retry),
            options.pace.clone(),
            options.fail_fast,
        ));
        current.replace(settings, &targets)?;
        let probes = Probes::new(Arc::clone(&current), Arc::clone(&targets), options.pace);
        Ok(Arc::new(Self {
            current,
            targets,
            probes,
            interval: Interval::new(options.rate),
            budget: Budget::new(settings.max_in_flight_bytes),
            created_ms: options.clock.now_ms(),
            clock: options.clock,
            reload: Mutex::new(()),
        }))
    }

    /// Puts other settings in the place of those before, all at once. What keeps its name keeps its
    /// state: calls in flight, health, what was used of limits. Calls in flight go on, and end
    /// where they began. Routes that were resolved before lead no line to an upstream that is gone;
    /// [`renewed`](Self::renewed) says where their lines go now.
    ///
    /// # Errors
    /// When the settings of an upstream cannot work. Then nothing has changed.
    pub fn reload(&self, settings: &Settings) -> Result<(), BuildError> {
        let _one_at_a_time = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let [before, now] = self.current.replace(settings, &self.targets)?;
        for upstream in &now.upstreams {
            let name = &upstream.client.name;
            // What was closed is not known of a server that is called in another way.
            if before.has_named(name) && !before.has(&upstream.client) {
                self.targets.reset(name);
            }
        }
        self.budget.resize(settings.max_in_flight_bytes);
        self.probes.reload();
        self.targets.on_reload();
        Ok(())
    }

    /// Where the lines of a model go; `""` for lines that name none. `None`: nobody serves the
    /// model. Cheap. The answer may change with what upstreams report (see
    /// [`changed`](Self::changed)).
    #[must_use]
    pub fn resolve(&self, model: &str) -> Option<Arc<Routes>> {
        self.current.get().routing.resolve(model)
    }

    /// Where the lines of a model go now, by the configuration of now, that went by these routes;
    /// in a batch that may have a task.
    #[must_use]
    pub fn renewed(
        &self,
        routes: &Arc<Routes>,
        task: Option<&str>,
        model: &str,
    ) -> Option<Arc<Routes>> {
        if self.has(routes) {
            return Some(Arc::clone(routes));
        }
        self.resolve_for(task, model)
    }

    /// Whether these routes are of the configuration of now.
    #[must_use]
    pub fn has(&self, routes: &Routes) -> bool {
        self.current.get().routing.has(routes)
    }

    /// The same for the lines of a batch, which may have a task: then for lines that name none, or
    /// the task, or one of its models.
    #[must_use]
    pub fn resolve_for(&self, task: Option<&str>, model: &str) -> Option<Arc<Routes>> {
        match task {
            Some(task) => self.current.get().routing.resolve_task(task, model),
            None => self.resolve(model),
        }
    }

    /// The models that do a task. `None`: there is no task of this name.
    #[must_use]
    pub fn models_of_task(&self, name: &str) -> Option<Vec<String>> {
        self.current.get().routing.models_of_task(name)
    }

    /// What metrics call the lines of a batch, which may have a task, that name this model.
    #[must_use]
    pub fn label_for(&self, task: Option<&str>, model: &str) -> String {
        self.label(task.filter(|_| model.is_empty()).unwrap_or(model))
    }

    /// Whether the lines of a model, in a batch that may have a task, would go the same way now.
    #[must_use]
    pub fn is_current(&self, routes: &Arc<Routes>, task: Option<&str>, model: &str) -> bool {
        let now = self.resolve_for(task, model);
        now.is_some_and(|now| Arc::ptr_eq(&now, routes))
    }

    /// What all prices are in, in lower case.
    #[must_use]
    pub fn currency(&self) -> String {
        self.current.get().routing.currency().to_owned()
    }

    /// The models to list: those configured (but for `*`), or, without `[[models]]`, those that
    /// the upstreams report.
    #[must_use]
    pub fn models(&self) -> Vec<ModelInfo> {
        self.current
            .get()
            .routing
            .models(clock::seconds(self.created_ms))
    }

    /// What metrics call a model: its name where the configuration or an upstream names it, else
    /// [`OTHER`](crate::metrics::OTHER).
    #[must_use]
    pub fn label(&self, model: &str) -> String {
        self.current.get().routing.label(model)
    }

    /// The budget of bytes that answers are reserved from.
    #[must_use]
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// What is known of the upstreams: which are open, and which work.
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// How many calls at once there may be, by the configuration of now.
    #[must_use]
    pub fn limits(&self) -> Arc<Limits> {
        self.targets.limits()
    }

    /// How this process stands with others that share its limits.
    #[must_use]
    pub fn sharing(&self) -> &Sharing {
        &self.targets.sharing
    }

    /// How many requests and tokens there may be in any window of time.
    #[must_use]
    pub fn rate_limits(&self) -> &RateLimits {
        &self.targets.rates
    }

    /// A free place at the best open target, or why there is none. Never blocks. `history`: what
    /// the line has been through, which says what it avoids. `batch`: the number of the line's
    /// batch.
    /// `rates`: what rate limits are asked of the line, where its routes
    /// [are rate-limited](Routes::are_rate_limited) or its tenant is.
    pub fn try_acquire(
        &self,
        routes: &Arc<Routes>,
        history: &History,
        batch: u64,
        rates: Option<RateRequest<'_>>,
    ) -> Acquired {
        let reach = Reach::Lowest;
        self.targets
            .try_acquire(routes, history, batch, rates, reach)
    }

    /// The same for a line that would be late otherwise: where the routes
    /// [spill late](Routes::spill_late), such a line may go to any tier.
    pub fn try_spill(
        &self,
        routes: &Arc<Routes>,
        history: &History,
        batch: u64,
        rates: Option<RateRequest<'_>>,
    ) -> Acquired {
        let reach = Reach::Any;
        self.targets
            .try_acquire(routes, history, batch, rates, reach)
    }

    /// Whether the lines of any model go to a higher tier only where they would be late.
    #[must_use]
    pub fn spills_late(&self) -> bool {
        let setup = self.current.get();
        let mut lanes = setup.routing.lanes().iter();
        lanes.any(|lane| lane.spill == Spill::Late)
    }

    /// Notified when a line may be sent that could not be sent before, and when models have
    /// changed: time to look again. For one listener; a wake-up that finds nobody waiting is kept.
    #[must_use]
    pub fn changed(&self) -> &Notify {
        &self.targets.changed
    }

    /// The calls in flight that are at least so old. What a look costs grows with the age of the
    /// oldest call, and not with how many calls there are.
    #[must_use]
    pub fn calls_older_than(&self, age: Duration) -> Option<OldCalls> {
        self.targets.calls_older_than(age)
    }

    /// Whether calls wait for their turn.
    #[must_use]
    pub fn has_rate(&self) -> bool {
        self.interval.has_rate()
    }

    /// Waits until a call may begin, where there is a rate. `false`: no call may begin any more.
    pub async fn turn(&self, permit: &mut Permit) -> bool {
        if !self.has_rate() {
            return true;
        }
        // The call's age is counted from its turn.
        permit.pause();
        let may_begin = self.interval.turn().await;
        permit.resume();
        may_begin
    }

    /// By which the answer to a line is found that asks the same, in this mode of reuse: for a
    /// tenant's line whose `url` is `path`, at the place that was chosen for it. `None`: the line
    /// is not to be answered so.
    #[must_use]
    pub fn reuse_key(
        &self,
        permit: &Permit,
        tenant: &str,
        (path, body): (&'static str, &[u8]),
        mode: Mode,
    ) -> Option<Key> {
        question::key(&self.clock, permit, tenant, (path, body), mode)
    }

    /// Makes one call: see [`call::make`].
    pub fn call<'a>(
        &'a self,
        permit: Permit,
        call: Call,
        history: &'a mut History,
        timer: &'a mut Timer,
    ) -> impl Future<Output = Attempt> + Send + 'a {
        // No `async fn`: that would hold what it is given twice.
        call::make(&self.clock, permit, call, history, timer)
    }

    /// How all upstreams are.
    #[must_use]
    pub fn snapshot(&self) -> Vec<UpstreamStatus> {
        snapshot::take(&self.current.get().upstreams, &self.targets)
    }

    /// Where the lines of each lane go now, and why not by the other routes. In the order of the
    /// configuration.
    #[must_use]
    pub fn lanes(&self) -> Vec<LaneStatus> {
        snapshot::lanes(&self.current.get(), &self.targets)
    }

    /// Probes upstreams that are down, asks those that are up for their models, and engines for
    /// their metrics, until stopped.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        stop.run_until_cancelled(self.probes.run()).await;
    }

    /// Waits until every upstream was asked for its models once, or had time enough to answer.
    pub async fn discovered(&self) {
        self.probes.discovered().await;
    }

    /// Sends one tiny request to each route, by each key of its upstream: of all upstreams, or of
    /// the one of this name. What a pattern stands for is a model that the upstream has listed: see
    /// [`try_upstreams`](Self::try_upstreams). A route without such a model is left out.
    pub async fn try_routes(&self, upstream: Option<&str>) -> Vec<Trial> {
        let mut trials = Vec::new();
        let setup = self.current.get();
        for lane in setup.routing.lanes() {
            for route in &lane.routes {
                let mut servers = setup.upstreams.iter();
                let server = servers.find(|server| server.number == route.upstream);
                let Some(client) = server.map(|server| &server.client) else {
                    continue;
                };
                if upstream.is_some_and(|name| *client.name != *name) {
                    continue;
                }
                let model = match (lane.prefix(), &route.rename) {
                    (None, _) => Some(lane.name.clone()),
                    (Some(_), Some(rename)) => Some(rename.as_ref().to_owned()),
                    (Some(prefix), None) => setup.routing.first_listed(route.upstream, prefix),
                };
                let Some(model) = model else { continue };
                let keys = self.targets.backends.key_names(route.upstream);
                for key in 0..keys.len().max(1) {
                    let sent_as = route.rename.as_deref().unwrap_or(&model);
                    let way = Way {
                        client,
                        key,
                        model: &model,
                        sent_as,
                        edit: route.edit.as_deref(),
                    };
                    trials.push(Trial {
                        model: lane.name.clone(),
                        upstream: client.name.as_ref().to_owned(),
                        key: keys.get(key).map(|name| name.as_ref().to_owned()),
                        sent_as: sent_as.to_owned(),
                        outcome: trial::make(&way, &self.clock).await,
                    });
                }
            }
        }
        trials
    }

    /// Asks each upstream once, with each of its keys: which models it lists, or what is wrong, in
    /// words. From then on models are routed by what was listed.
    pub async fn try_upstreams(&self) -> Vec<Tried> {
        let setup = self.current.get();
        let tried = probe::try_all(&setup.upstreams, &self.targets.backends).await;
        for one in &tried {
            if let Ok(models) = &one.models {
                setup.routing.report(one.upstream, models.clone());
            }
        }
        tried
    }
}
