//! Lanes and their routes, as the settings have them. This is the one place that has lanes, tiers
//! and upstreams numbered, and that finds upstreams by their names.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::Map;

use crate::domain::price::Price;
use crate::upstream::balance::Strategy;
use crate::upstream::limits::auto::WindowSpec;
use crate::upstream::limits::rate::Spec;
use crate::upstream::numbers::{Names, Number, Numbered, Numbers};
use crate::upstream::provider::edit::Edit;
use crate::upstream::route::pack::Pack;
use crate::upstream::settings::{
    BuildError, ModelSettings, Order, RouteSettings, Settings, Spill, TaskSettings,
    UpstreamSettings,
};

/// What a model's concurrency limit counts: one `[[models]]` entry, or all models where there is
/// none. An entry keeps its number when the configuration is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(usize);

impl LaneId {
    /// The lane's number.
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }
}

/// A `[[models]]` entry, or what stands for one; or a task, done by all of its models or by one.
#[derive(Debug)]
pub(in crate::upstream) struct Lane {
    pub(in crate::upstream) id: LaneId,
    /// As the entry names the model, or how the names begin that it is for: see
    /// [`prefix`](Self::prefix).
    pub(in crate::upstream) name: String,
    /// The task, and the one model that does it. `None`: the lane is no task's.
    pub(in crate::upstream) task: Option<Task>,
    /// The lane's own limit, where it has one.
    pub(in crate::upstream) concurrency: Option<usize>,
    is_auto: bool,
    pub(in crate::upstream) strategy: Strategy,
    pub(in crate::upstream) spill: Spill,
    pub(in crate::upstream) order: Order,
    /// The lower tier first; within a tier as the entry has them.
    pub(in crate::upstream) routes: Vec<Route>,
    /// The numbers of its tiers, the lowest first.
    pub(in crate::upstream) tiers: Vec<Number>,
}

/// Which lines of a task a lane is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::upstream) struct Task {
    pub(in crate::upstream) name: String,
    /// `None`: lines that any of the task's models may answer.
    pub(in crate::upstream) model: Option<String>,
}

/// A way from a lane to an upstream.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Route {
    /// The lane of the model, whose limit counts for the calls; another one than that of a task.
    pub(in crate::upstream) lane: LaneId,
    /// The route's place in that lane.
    pub(in crate::upstream) place: usize,
    /// What metrics call the model, where the lane is a task's.
    pub(in crate::upstream) label: Option<String>,
    /// The upstream's number.
    pub(in crate::upstream) upstream: usize,
    pub(in crate::upstream) weight: u32,
    pub(in crate::upstream) tier: u32,
    /// What the upstream calls the model, where that differs.
    pub(in crate::upstream) rename: Option<Arc<str>>,
    pub(in crate::upstream) edit: Option<Arc<Edit>>,
    pub(in crate::upstream) limit: Option<RouteLimit>,
    is_auto: bool,
    /// The number of the window of its model at its upstream, where there is one.
    pub(in crate::upstream) window: Option<usize>,
    /// By each key of the upstream: the places of the rate limits that bound the calls.
    pub(in crate::upstream) rate_limits: Arc<[Arc<[usize]>]>,
    /// Wins over the upstream's.
    pub(in crate::upstream) price: Option<Price>,
    /// How lines share calls, where they do.
    pub(in crate::upstream) pack: Option<Arc<Pack>>,
}

/// How many calls at once a route takes.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct RouteLimit {
    /// Its number among the limits of all routes.
    pub(in crate::upstream) number: usize,
    pub(in crate::upstream) concurrency: usize,
}

/// Windows, each with its number.
pub(in crate::upstream) type NumberedWindows = Vec<(Number, WindowSpec)>;

impl Lane {
    /// All lanes in the order of the settings, their windows, and the numbers that all of it goes
    /// by. Rate limits are told by their places among the specs.
    pub(in crate::upstream) fn all(
        settings: &Settings,
        specs: &[Spec],
        numbers: &Numbers,
    ) -> Result<(Vec<Self>, NumberedWindows, Numbered), BuildError> {
        let upstreams = &settings.upstreams;
        let models = settings.models.iter().enumerate();
        let lanes = models.map(|(place, model)| Self::of_model(place, model, upstreams, specs));
        let mut lanes = lanes.collect::<Result<Vec<_>, _>>()?;
        if lanes.is_empty() {
            lanes.push(Self::of_all(upstreams, specs));
        }
        let limits = lanes.iter_mut().flat_map(|lane| &mut lane.routes);
        let limits = limits.filter_map(|route| route.limit.as_mut());
        for (place, limit) in limits.enumerate() {
            limit.number = place;
        }
        Self::add_tasks(&mut lanes, settings);
        let mut windows = Self::windows(&mut lanes, upstreams);
        let mut names = names(&lanes, upstreams, specs);
        names.windows = windows.iter().map(|window| window.name.clone()).collect();
        let numbered = numbers.of(&names);
        for window in &mut windows {
            window.upstream = numbered.upstreams[window.upstream].at;
        }
        let mut tiers = numbered.tiers.iter();
        for (lane, number) in lanes.iter_mut().zip(&numbered.lanes) {
            lane.id = LaneId(number.at);
            let count = lane.by_tier().count();
            lane.tiers = tiers.by_ref().take(count).copied().collect();
            for route in &mut lane.routes {
                route.lane = LaneId(numbered.lanes[route.lane.index()].at);
                route.upstream = numbered.upstreams[route.upstream].at;
                route.window = route.window.map(|window| numbered.windows[window].at);
                if let Some(limit) = &mut route.limit {
                    limit.number = numbered.routes[limit.number].at;
                }
            }
        }
        let windows = numbered.windows.iter().copied().zip(windows).collect();
        Ok((lanes, windows, numbered))
    }

    /// Adds the lanes of tasks. Their routes are those of models, with their limits.
    fn add_tasks(lanes: &mut Vec<Self>, settings: &Settings) {
        for task in &settings.tasks {
            let of_models = task.models.iter();
            let of_models =
                of_models.map(|model| Self::routes_of_task(task, model, settings, lanes));
            let of_models: Vec<((Spill, Order), Vec<Route>)> = of_models.collect();
            let all = of_models.iter().flat_map(|(_, routes)| routes.clone());
            let spill = agreed(of_models.iter().map(|((spill, _), _)| *spill));
            let order = agreed(of_models.iter().map(|((_, order), _)| *order));
            lanes.push(Self::of_task(task, None, (spill, order), all.collect()));
            if of_models.len() > 1 {
                let each = task.models.iter().zip(of_models);
                lanes.extend(
                    each.map(|(model, (ways, routes))| {
                        Self::of_task(task, Some(model), ways, routes)
                    }),
                );
            }
        }
    }

    /// The windows of all lanes, in the order in which the routes tell them. There is one for a
    /// model at an upstream where the upstream, the model or a route between them asks for it: a
    /// bounded number, whatever names lines give. Not numbered yet.
    fn windows(lanes: &mut [Self], upstreams: &[UpstreamSettings]) -> Vec<WindowSpec> {
        let mut windows: Vec<WindowSpec> = Vec::new();
        let model_of = |name: &str, route: &Route| {
            let model = route.rename.as_deref().unwrap_or(name);
            model.to_owned()
        };
        for lane in lanes.iter().filter(|lane| lane.task.is_none()) {
            for route in &lane.routes {
                let (model, upstream) = (model_of(&lane.name, route), &upstreams[route.upstream]);
                let is_known = windows
                    .iter()
                    .any(|window| window.upstream == route.upstream && window.model == model);
                if !is_known && (upstream.is_auto || lane.is_auto || route.is_auto) {
                    windows.push(WindowSpec {
                        name: format!("{} > {model}", upstream.name),
                        upstream: route.upstream,
                        upstream_name: upstream.name.clone(),
                        model,
                        most: upstream.concurrency,
                        yields: upstream.yields,
                    });
                }
            }
        }
        for lane in lanes.iter_mut().filter(|lane| lane.task.is_none()) {
            for route in &mut lane.routes {
                let model = model_of(&lane.name, route);
                let mut all = windows.iter();
                route.window = all
                    .position(|window| window.upstream == route.upstream && window.model == model);
            }
        }
        // The routes of a task have the windows of those of its models.
        let of_models: Vec<Vec<Option<usize>>> = lanes
            .iter()
            .map(|lane| lane.routes.iter().map(|route| route.window).collect())
            .collect();
        for lane in lanes.iter_mut().filter(|lane| lane.task.is_some()) {
            for route in &mut lane.routes {
                route.window = of_models[route.lane.index()][route.place];
            }
        }
        windows
    }

    /// The routes of a model by which the lines of a task go, when they go to the next tier, and in
    /// which order.
    fn routes_of_task(
        task: &TaskSettings,
        model: &str,
        settings: &Settings,
        lanes: &[Self],
    ) -> ((Spill, Order), Vec<Route>) {
        let models = &settings.models;
        let entry = ModelSettings::of(models, model);
        let place = entry.and_then(|entry| models.iter().position(|one| one.name == entry.name));
        let lane = &lanes[place.unwrap_or(0)];
        let mut of_entry: Vec<&RouteSettings> =
            entry.iter().flat_map(|entry| &entry.routes).collect();
        of_entry.sort_by_key(|route| route.tier);
        let none = Map::new();
        let routes = lane.routes.iter().enumerate().map(|(place, route)| {
            let of_route = of_entry.get(place);
            let name = route.rename.as_deref().unwrap_or(model);
            let edit = Edit::new(
                Some(name),
                &[
                    of_route.map_or(&none, |one| &one.defaults),
                    entry.map_or(&none, |one| &one.defaults),
                    &task.defaults,
                ],
                &[
                    &task.overrides,
                    entry.map_or(&none, |one| &one.overrides),
                    of_route.map_or(&none, |one| &one.overrides),
                ],
            );
            Route {
                rename: Some(name.into()),
                edit: edit.map(Arc::new),
                label: Some(model.to_owned()),
                ..route.clone()
            }
        });
        ((lane.spill, lane.order), routes.collect())
    }

    /// A task, done by all of its models or by one of them.
    fn of_task(
        task: &TaskSettings,
        model: Option<&String>,
        (spill, order): (Spill, Order),
        mut routes: Vec<Route>,
    ) -> Self {
        routes.sort_by_key(|route| route.tier);
        Self {
            id: LaneId(0),
            name: match model {
                Some(model) => format!("{} > {model}", task.name),
                None => task.name.clone(),
            },
            task: Some(Task {
                name: task.name.clone(),
                model: model.cloned(),
            }),
            concurrency: None,
            is_auto: false,
            strategy: task.balance,
            spill,
            order,
            routes,
            tiers: Vec::new(),
        }
    }

    /// `places`: of all rate limits, in the order of their specs. By these they are found from now
    /// on.
    pub(in crate::upstream) fn place_rate_limits(&mut self, places: &[usize]) {
        for route in &mut self.routes {
            let by_key = route.rate_limits.iter();
            let by_key = by_key.map(|limits| limits.iter().map(|&spec| places[spec]).collect());
            route.rate_limits = by_key.collect();
        }
    }

    /// Not numbered yet: lanes, upstreams and rate limits are told by their places.
    fn of_model(
        place: usize,
        model: &ModelSettings,
        upstreams: &[UpstreamSettings],
        specs: &[Spec],
    ) -> Result<Self, BuildError> {
        let routes = model.routes.iter().enumerate();
        let routes = routes.map(|(at, route)| {
            let upstream = upstream_of(route, model, upstreams)?;
            let rate_limits = bounds(specs, Some((place, at)), upstreams, upstream);
            Ok(Route::new(
                LaneId(place),
                route,
                model,
                upstream,
                rate_limits,
            ))
        });
        let mut routes = routes.collect::<Result<Vec<_>, _>>()?;
        routes.sort_by_key(|route| route.tier);
        for (place, route) in routes.iter_mut().enumerate() {
            route.place = place;
        }
        Ok(Self {
            id: LaneId(place),
            name: model.name.clone(),
            task: None,
            concurrency: model.concurrency,
            is_auto: model.is_auto,
            strategy: model.balance,
            spill: model.spill,
            order: model.order,
            routes,
            tiers: Vec::new(),
        })
    }

    /// The one lane of a configuration without models. Not numbered yet, either.
    fn of_all(upstreams: &[UpstreamSettings], specs: &[Spec]) -> Self {
        let route = |upstream| Route {
            lane: LaneId(0),
            place: upstream,
            label: None,
            upstream,
            weight: 1,
            tier: 0,
            rename: None,
            edit: None,
            limit: None,
            is_auto: false,
            window: None,
            rate_limits: bounds(specs, None, upstreams, upstream),
            price: None,
            pack: None,
        };
        Self {
            id: LaneId(0),
            name: "*".to_owned(),
            task: None,
            concurrency: None,
            is_auto: false,
            strategy: Strategy::default(),
            spill: Spill::default(),
            order: Order::default(),
            routes: (0..upstreams.len()).map(route).collect(),
            tiers: Vec::new(),
        }
    }

    /// How the names of models begin that the lane is for; `None` where it is for one model.
    pub(in crate::upstream) fn prefix(&self) -> Option<&str> {
        self.name.strip_suffix('*')
    }

    /// Its routes, tier by tier.
    pub(in crate::upstream) fn by_tier(&self) -> impl Iterator<Item = &[Route]> {
        self.routes.chunk_by(|one, next| one.tier == next.tier)
    }

    /// What a limit of one of its routes is called, which leads to the upstream of this name.
    pub(in crate::upstream) fn name_of(&self, route: &Route, upstream: &str) -> String {
        match &route.rename {
            Some(model) => format!("{} > {upstream} > {model}", self.name),
            None => format!("{} > {upstream}", self.name),
        }
    }

    /// The upstreams that the lane's lines may go to, each once, in their order.
    pub(in crate::upstream) fn upstreams(&self) -> Vec<usize> {
        let mut upstreams: Vec<usize> = self.routes.iter().map(|route| route.upstream).collect();
        upstreams.sort_unstable();
        upstreams.dedup();
        upstreams
    }
}

impl Route {
    fn new(
        lane: LaneId,
        route: &RouteSettings,
        model: &ModelSettings,
        upstream: usize,
        rate_limits: Arc<[Arc<[usize]>]>,
    ) -> Self {
        // The route is further from the line than the model: what it fills in gives way, and what
        // it writes over wins.
        let edit = Edit::new(
            route.model.as_deref(),
            &[&route.defaults, &model.defaults],
            &[&model.overrides, &route.overrides],
        );
        Self {
            lane,
            place: 0,
            label: None,
            upstream,
            weight: route.weight.max(1),
            tier: route.tier,
            rename: route.model.as_deref().map(Into::into),
            edit: edit.map(Arc::new),
            limit: route.concurrency.map(|concurrency| RouteLimit {
                number: 0,
                concurrency,
            }),
            is_auto: route.is_auto,
            window: None,
            rate_limits,
            price: route.price,
            pack: route.pack.map(|limits| Arc::new(Pack::new(limits))),
        }
    }
}

/// By each key of an upstream: the rate limits that bound calls by a route there.
fn bounds(
    specs: &[Spec],
    route: Option<(usize, usize)>,
    upstreams: &[UpstreamSettings],
    upstream: usize,
) -> Arc<[Arc<[usize]>]> {
    let keys = 0..upstreams[upstream].keys.len().max(1);
    keys.map(|key| Spec::that_bound(specs, route, (upstream, key)).into())
        .collect()
}

/// What an upstream is numbered by. With other keys it is another one: calls in flight end by the
/// keys by which they began.
fn name_of(upstream: &UpstreamSettings) -> String {
    let mut name = format!("{:?}", upstream.name);
    for key in upstream.told_keys() {
        let _ = write!(name, " {:?}", key.name);
    }
    name
}

/// What lanes that are not numbered yet are to be numbered by. The name of a tier says all by which
/// a strategy remembers: so a strategy begins anew where the routes have changed.
fn names(lanes: &[Lane], upstreams: &[UpstreamSettings], specs: &[Spec]) -> Names {
    let mut names = Names {
        upstreams: upstreams.iter().map(name_of).collect(),
        rates: specs.iter().map(Spec::resource).collect(),
        ..Names::default()
    };
    for lane in lanes {
        let of_lane = match &lane.task {
            Some(Task { name, model }) => format!("task {name:?} {model:?}"),
            None => format!("model {:?}", lane.name),
        };
        for (place, routes) in lane.by_tier().enumerate() {
            let mut name = format!("{of_lane} {place} {}", lane.strategy.as_str());
            for route in routes {
                let (upstream, model) = (&upstreams[route.upstream].name, &route.rename);
                let _ = write!(name, " {upstream:?} {model:?} {}", route.weight);
            }
            names.tiers.push(name);
        }
        names.lanes.push(of_lane);
        let limited = lane.routes.iter();
        let limited = limited.filter(|route| route.limit.is_some() && lane.task.is_none());
        let name = |route: &Route| lane.name_of(route, &upstreams[route.upstream].name);
        names.routes.extend(limited.map(name));
    }
    names
}

/// What holds for the lines of a task: what all of its models say; where they differ, as if they
/// said nothing.
fn agreed<T: Copy + Default + PartialEq>(mut said: impl Iterator<Item = T>) -> T {
    let first = said.next().unwrap_or_default();
    if said.all(|one| one == first) {
        first
    } else {
        T::default()
    }
}

/// The place of the upstream that a route leads to.
fn upstream_of(
    route: &RouteSettings,
    model: &ModelSettings,
    upstreams: &[UpstreamSettings],
) -> Result<usize, BuildError> {
    let named = |upstream: &UpstreamSettings| upstream.name == route.upstream;
    upstreams.iter().position(named).ok_or_else(|| BuildError {
        upstream: route.upstream.clone(),
        problem: format!(
            "model `{}` has a route to it, but it is not there",
            model.name
        ),
    })
}
