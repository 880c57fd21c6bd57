//! Which upstreams serve which model: from the configuration, or, without `[[models]]`, from what
//! the upstreams report.

pub(super) mod lane;
pub(super) mod pack;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::attempt::bill::Tariff;
use super::attempt::client::Client;
use super::balance::Strategy;
use super::capabilities::KNOWN_CURRENCY;
use super::limits::rate::{LineSize, Tokens};
use super::models::{ModelInfo, listed_as};
use super::numbers::InUse;
use super::provider::edit::Edit;
use super::settings::{Capabilities, Order, PackLimits, Spill, UpstreamSettings};
use super::target::backend::{Backend, Backends};
use crate::metrics::{CallSeconds, FirstTokenSeconds, OTHER, PackMetrics, metrics};

pub(super) use self::lane::Lane;
pub use self::lane::LaneId;
use self::lane::{Route, Task};
use self::pack::Pack;
use crate::domain::price::Price;

/// Names resolved by a pattern that are remembered: what users write must not fill the memory.
const CACHED_MAX: usize = 10_000;

/// Where the lines of a model can go.
#[derive(Debug)]
pub struct Routes {
    pub lane: LaneId,
    pub(super) spill: Spill,
    /// Whether the strategy wants to know how fast calls are answered.
    pub(super) is_timed: bool,
    are_rate_limited: bool,
    inputs_max: usize,
    order: Order,
    /// The lowest first.
    pub(super) tiers: Box<[Tier]>,
    /// Tier by tier.
    pub(super) targets: Box<[Target]>,
    /// The numbers of the configuration that the routes are of.
    pub(super) in_use: Arc<InUse>,
}

/// Targets that are chosen from together.
#[derive(Debug)]
pub(super) struct Tier {
    /// The tier's number.
    pub(super) number: usize,
    /// Their places among the targets of the routes.
    pub(super) targets: Range<usize>,
}

/// A model at an upstream, as a route leads there.
#[derive(Debug)]
pub(super) struct Target {
    /// The upstream's number.
    pub(super) upstream: usize,
    /// The lane of the model, whose limit counts for the calls. Another one than that of the routes
    /// where these are a task's.
    pub(super) lane: LaneId,
    /// By which calls are made there.
    pub(super) client: Arc<Client>,
    /// By each key of the upstream, in their order: one at least.
    pub(super) by_key: Box<[ByKey]>,
    pub(super) weight: u32,
    pub(super) edit: Option<Arc<Edit>>,
    /// What its calls are billed by.
    pub(super) tariff: Arc<Tariff>,
    /// The number of the route's own limit, where it has one.
    pub(super) limit: Option<usize>,
    /// The number of the window of the model at the upstream, where there is one.
    pub(super) window: Option<usize>,
    pub(super) seconds: CallSeconds,
    pub(super) first_token: FirstTokenSeconds,
    /// How lines share calls, where they do.
    pub(super) pack: Option<(Arc<Pack>, PackMetrics)>,
}

/// A target, as one key of its upstream leads there.
#[derive(Debug)]
pub(super) struct ByKey {
    pub(super) backend: Arc<Backend>,
    /// The places of the rate limits that bound the calls.
    pub(super) rate_limits: Arc<[usize]>,
}

impl Target {
    /// The backends, one for each key.
    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.by_key.iter().map(|by_key| &by_key.backend)
    }

    /// How much the lines of a call have together at most, where lines share calls.
    pub(super) fn pack_limits(&self) -> Option<PackLimits> {
        let PackLimits { inputs, bytes } = self.pack.as_ref()?.0.limits;
        let inputs = inputs.min(self.client.provider.inputs_max());
        (inputs > 1).then_some(PackLimits { inputs, bytes })
    }

    /// The tokens that are reserved for a line here. The route may say how long an answer may be.
    pub(super) fn tokens(&self, size: LineSize) -> Tokens {
        let max_output = match &self.edit {
            Some(edit) => edit.max_output(size.max_output),
            None => size.max_output,
        };
        let backend = &self.by_key[0].backend;
        backend.estimate(LineSize { max_output, ..size })
    }
}

/// Which models go where.
#[derive(Debug)]
pub(super) struct Routing {
    /// In the order of the configuration.
    lanes: Vec<Lane>,
    /// By the numbers of the upstreams.
    clients: BTreeMap<usize, Arc<Client>>,
    in_use: Arc<InUse>,
    exact: HashMap<String, Arc<Routes>>,
    /// The places of the lanes of tasks.
    tasks: HashMap<Task, usize>,
    /// The places of the lanes for all names that begin alike, the longest beginning first. Without
    /// `[[models]]` there is one, for every name.
    patterns: Vec<usize>,
    /// Without `[[models]]`, and with a choice: upstreams get the models that they report.
    by_report: bool,
    /// The configured names; `None` without `[[models]]`.
    configured: Option<Vec<String>>,
    known: RwLock<Known>,
    backends: Arc<Backends>,
    prices: Prices,
}

/// What is known of prices.
#[derive(Debug, Default)]
pub(super) struct Prices {
    /// Of all prices that are configured. `None`: that of those that are known by themselves.
    pub(super) currency: Option<String>,
    /// By their numbers.
    pub(super) upstreams: BTreeMap<usize, Arc<UpstreamSettings>>,
}

impl Prices {
    /// What a model costs by a route. `model`: its name, where the route has no other for it.
    fn of(&self, route: &Route, model: &str) -> Option<Price> {
        let of_upstream = || {
            let upstream = self.upstreams.get(&route.upstream)?;
            let sent_as = route.rename.as_deref().unwrap_or(model);
            Capabilities::of(upstream, sent_as, self.currency.as_deref()).price
        };
        route.price.or_else(of_upstream)
    }
}

/// What is learned while running. One lock: a route made from an old list must not outlive it.
#[derive(Debug)]
struct Known {
    /// By the number of the upstream. Those that have never listed their models are left out.
    reported: Reported,
    resolved: HashMap<String, Arc<Routes>>,
    /// Of tasks, by the place of their lanes.
    of_tasks: HashMap<usize, Arc<Routes>>,
}

/// Which models upstreams report.
type Reported = BTreeMap<usize, Vec<ModelInfo>>;

impl Routes {
    /// The upstreams that the lines can go to, by their numbers.
    pub fn upstreams(&self) -> impl Iterator<Item = usize> {
        self.targets.iter().map(|target| target.upstream)
    }

    /// Whether lines go to a higher tier only where they would be late otherwise, and there is a
    /// higher tier.
    #[must_use]
    pub fn spill_late(&self) -> bool {
        self.spill == Spill::Late && self.tiers.len() > 1
    }

    /// Whether lines of `/v1/embeddings` share calls by any of the routes.
    #[must_use]
    pub fn pack(&self) -> bool {
        self.inputs_max > 1
    }

    /// How many lines a call may have at most.
    #[must_use]
    pub fn lines_per_call(&self) -> usize {
        self.inputs_max
    }

    /// In which order the lines of a batch are sent.
    #[must_use]
    pub fn order(&self) -> Order {
        self.order
    }

    /// Whether calls by any of the routes count against a rate limit.
    #[must_use]
    pub fn are_rate_limited(&self) -> bool {
        self.are_rate_limited
    }
}

impl Routing {
    /// `is_configured`: the lanes are of `[[models]]`. `clients`, and what they have `reported`: by
    /// the numbers of the upstreams.
    pub(super) fn new(
        (lanes, is_configured): (Vec<Lane>, bool),
        (clients, reported): (BTreeMap<usize, Arc<Client>>, Reported),
        in_use: Arc<InUse>,
        backends: Arc<Backends>,
        prices: Prices,
    ) -> Self {
        let of_models = lanes.iter().filter(|lane| lane.task.is_none());
        let names = of_models.map(|lane| lane.name.clone());
        let names = names.filter(|name| !name.is_empty() && !name.ends_with('*'));
        let configured = is_configured.then(|| names.collect());
        let tasks = lanes.iter().enumerate();
        let tasks = tasks.filter_map(|(place, lane)| Some((lane.task.clone()?, place)));
        let tasks = tasks.collect();
        let mut routing = Self {
            by_report: !is_configured && clients.len() > 1,
            lanes,
            clients,
            in_use,
            exact: HashMap::new(),
            tasks,
            patterns: Vec::new(),
            configured,
            known: RwLock::new(Known {
                reported,
                resolved: HashMap::new(),
                of_tasks: HashMap::new(),
            }),
            backends,
            prices,
        };
        let lanes = &routing.lanes;
        let routed = || {
            let lanes = lanes.iter().enumerate();
            lanes.filter(|(_, lane)| !lane.routes.is_empty() && lane.task.is_none())
        };
        let named = routed().filter(|(_, lane)| lane.prefix().is_none());
        let exact = named.map(|(_, lane)| {
            let routes = routing.routes_of(lane, &lane.name, &lane.name, |_, _| true);
            (lane.name.clone(), Arc::new(routes))
        });
        let exact = exact.collect();
        let patterns = routed().filter(|(_, lane)| lane.prefix().is_some());
        let mut patterns: Vec<usize> = patterns.map(|(place, _)| place).collect();
        patterns.sort_by_key(|&place| Reverse(lanes[place].name.len()));
        (routing.exact, routing.patterns) = (exact, patterns);
        routing
    }

    /// What all prices are in.
    pub(super) fn currency(&self) -> &str {
        self.prices.currency.as_deref().unwrap_or(KNOWN_CURRENCY)
    }

    /// What upstreams have reported.
    pub(super) fn reported(&self) -> Reported {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.reported.clone()
    }

    /// Whether these routes are of this configuration.
    pub(super) fn has(&self, routes: &Routes) -> bool {
        Arc::ptr_eq(&self.in_use, &routes.in_use)
    }

    /// All lanes, in the order of the configuration.
    pub(super) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Whether the models that upstreams report are listed or routed.
    pub(super) fn wants_reports(&self) -> bool {
        self.configured.is_none()
    }

    /// Whether models are routed by what upstreams report.
    pub(super) fn needs_reports(&self) -> bool {
        self.by_report
    }

    /// The first model that an upstream has listed whose name begins so.
    pub(super) fn first_listed(&self, upstream: usize, prefix: &str) -> Option<String> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut listed = known.reported.get(&upstream)?.iter();
        let found = listed.find(|model| model.id.starts_with(prefix));
        found.map(|model| model.id.clone())
    }

    /// Takes in the models that an upstream reports. True if they are not what was known.
    pub(super) fn report(&self, upstream: usize, models: Vec<ModelInfo>) -> bool {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.reported.get(&upstream) == Some(&models) {
            return false;
        }
        known.reported.insert(upstream, models);
        known.resolved.clear();
        known.of_tasks.clear();
        true
    }

    pub(super) fn resolve(&self, model: &str) -> Option<Arc<Routes>> {
        if let Some(routes) = self.exact.get(model) {
            return Some(Arc::clone(routes));
        }
        if self.is_task(model) {
            return self.resolve_task(model, "");
        }
        let lane = self.pattern(model)?;
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(routes) = known.resolved.get(model) {
            return Some(Arc::clone(routes));
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let routes = Arc::new(self.route(lane, model, &known.reported)?);
        if known.resolved.len() >= CACHED_MAX {
            known.resolved.clear();
        }
        known.resolved.insert(model.to_owned(), Arc::clone(&routes));
        Some(routes)
    }

    /// Whether there is a task of this name.
    pub(super) fn is_task(&self, name: &str) -> bool {
        let mut tasks = self.tasks.keys();
        tasks.any(|task| task.name == name)
    }

    /// The models that do a task, in their order.
    pub(super) fn models_of_task(&self, name: &str) -> Option<Vec<String>> {
        let lane = &self.lanes[self.place_of_task(name, "")?];
        let mut models = Vec::new();
        for model in lane.routes.iter().filter_map(|route| route.label.as_ref()) {
            if !models.contains(model) {
                models.push(model.clone());
            }
        }
        Some(models)
    }

    /// Where the lines of a task go that name a model; `""`, or the name of the task: any of its
    /// models. `None`: there is no such task, or the model is none of its.
    pub(super) fn resolve_task(&self, task: &str, model: &str) -> Option<Arc<Routes>> {
        let place = self.place_of_task(task, model)?;
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(routes) = known.of_tasks.get(&place) {
            return Some(Arc::clone(routes));
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let lane = &self.lanes[place];
        let has = |upstream: usize, model: &str| {
            let listed = known.reported.get(&upstream);
            listed.map(|models| models.iter().any(|known| known.id == model))
        };
        let routes = |takes: fn(Option<bool>) -> bool| {
            self.routes_of(lane, task, task, |upstream, model| {
                !self.by_report || takes(has(upstream, model))
            })
        };
        let mut found = routes(|has| has == Some(true));
        if found.targets.is_empty() {
            // No upstream lists a model; those that have never listed anything may have it.
            found = routes(|has| has.is_none());
        }
        if found.targets.is_empty() {
            return None;
        }
        let found = known
            .of_tasks
            .entry(place)
            .or_insert_with(|| Arc::new(found));
        Some(Arc::clone(found))
    }

    /// The place of the lane of a task's lines that name a model.
    fn place_of_task(&self, task: &str, model: &str) -> Option<usize> {
        let name = task.to_owned();
        let any = Task { name, model: None };
        let of_any = *self.tasks.get(&any)?;
        if model.is_empty() || model == task {
            return Some(of_any);
        }
        let one = Task {
            model: Some(model.to_owned()),
            ..any
        };
        let of_one = self.tasks.get(&one).copied();
        // A task of one model has one lane.
        of_one.or_else(|| {
            let mut routes = self.lanes[of_any].routes.iter();
            let is_only = routes.all(|route| route.label.as_deref() == Some(model));
            is_only.then_some(of_any)
        })
    }

    /// The lane of a model that no lane is for alone.
    fn pattern(&self, model: &str) -> Option<&Lane> {
        let fits = |lane: &&Lane| lane.prefix().is_some_and(|begin| model.starts_with(begin));
        let mut patterns = self.patterns.iter().map(|&place| &self.lanes[place]);
        patterns.find(fits)
    }

    fn route(&self, lane: &Lane, model: &str, reported: &Reported) -> Option<Routes> {
        let listed = listed_as(reported.values().flatten(), model);
        let label = listed.as_deref().unwrap_or(label_of(lane));
        let model = listed.as_deref().unwrap_or(model);
        let has = |models: &Vec<ModelInfo>| models.iter().any(|known| known.id == model);
        if !self.by_report || model.is_empty() {
            return Some(self.routes_of(lane, model, label, |_, _| true));
        }
        let routes = self.routes_of(lane, model, label, |upstream, _| {
            reported.get(&upstream).is_some_and(has)
        });
        if !routes.targets.is_empty() {
            return Some(routes);
        }
        // No upstream lists the model; those that have never listed anything may have it.
        let routes = self.routes_of(lane, model, label, |upstream, _| {
            !reported.contains_key(&upstream)
        });
        (!routes.targets.is_empty()).then_some(routes)
    }

    pub(super) fn label(&self, model: &str) -> String {
        if model.is_empty() || self.exact.contains_key(model) || self.is_task(model) {
            return if model.is_empty() { OTHER } else { model }.to_owned();
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let listed = listed_as(known.reported.values().flatten(), model);
        listed.unwrap_or_else(|| self.pattern(model).map_or(OTHER, label_of).to_owned())
    }

    /// The models to list, each once.
    pub(super) fn models(&self, started: i64) -> Vec<ModelInfo> {
        if let Some(names) = &self.configured {
            let configured = names.iter().map(|name| ModelInfo {
                id: name.clone(),
                created: started,
                owned_by: "nightshift".to_owned(),
                shutdown_date: None,
            });
            return configured.collect();
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let all = known.reported.values().flatten();
        let mut by_id = BTreeMap::new();
        for model in all {
            by_id.entry(&model.id).or_insert(model);
        }
        by_id.into_values().cloned().collect()
    }

    /// The routes of a lane to those upstreams, by what they call the model. `label`: what metrics
    /// call the model, where the route does not say.
    fn routes_of(
        &self,
        lane: &Lane,
        model: &str,
        label: &str,
        goes_to: impl Fn(usize, &str) -> bool,
    ) -> Routes {
        let mut targets = Vec::with_capacity(lane.routes.len());
        let mut tiers = Vec::new();
        for (routes, number) in lane.by_tier().zip(&lane.tiers) {
            let first = targets.len();
            let routes = routes.iter().filter(|route| {
                let model = route.rename.as_deref().unwrap_or(model);
                goes_to(route.upstream, model)
            });
            targets.extend(routes.filter_map(|route| {
                let client = self.clients.get(&route.upstream)?;
                let tariff = Tariff {
                    upstream: Arc::clone(&client.name),
                    model: route.label.as_deref().unwrap_or(model).into(),
                    price: self.prices.of(route, model),
                };
                let model = route.rename.clone().unwrap_or_else(|| model.into());
                let label = route.label.as_deref().unwrap_or(label);
                let by_key = route.rate_limits.iter().enumerate();
                let by_key = by_key.map(|(key, rate_limits)| ByKey {
                    backend: self.backends.get(route.upstream, key, &model),
                    rate_limits: Arc::clone(rate_limits),
                });
                Some(Target {
                    upstream: route.upstream,
                    lane: route.lane,
                    client: Arc::clone(client),
                    by_key: by_key.collect(),
                    weight: route.weight,
                    edit: route.edit.clone(),
                    tariff: Arc::new(tariff),
                    limit: route.limit.map(|limit| limit.number),
                    window: route.window,
                    seconds: metrics().call_seconds(&client.name, label),
                    first_token: FirstTokenSeconds::new(&client.name, label),
                    pack: route.pack.as_ref().map(|pack| {
                        let counted = metrics().packed(&client.name, label);
                        (Arc::clone(pack), counted)
                    }),
                })
            }));
            tiers.push(Tier {
                number: number.at,
                targets: first..targets.len(),
            });
        }
        Routes {
            lane: lane.id,
            spill: lane.spill,
            is_timed: lane.strategy == Strategy::Fastest,
            are_rate_limited: targets
                .iter()
                .any(|target| !target.by_key[0].rate_limits.is_empty()),
            order: lane.order,
            inputs_max: targets
                .iter()
                .filter_map(|target| Some(target.pack_limits()?.inputs))
                .max()
                .unwrap_or(1),
            tiers: tiers.into(),
            targets: targets.into(),
            in_use: Arc::clone(&self.in_use),
        }
    }
}

/// What metrics call the models of a pattern that no list has: there may be any number of them.
fn label_of(lane: &Lane) -> &str {
    if lane.name == "*" { OTHER } else { &lane.name }
}
