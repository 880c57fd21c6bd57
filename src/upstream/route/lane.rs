//! Lanes and their routes, as the settings have them. This is the one place that numbers lanes, and
//! that finds upstreams by their names.

use std::sync::Arc;

use crate::upstream::balance::{Balancer, Strategy};
use crate::upstream::limits::auto::WindowSpec;
use crate::upstream::limits::rate::Spec;
use crate::upstream::provider::edit::Edit;
use crate::upstream::settings::{
    BuildError, ModelSettings, RouteSettings, Settings, Spill, UpstreamSettings,
};

/// What a model's concurrency limit counts: one `[[models]]` entry, or all models where there is
/// none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(usize);

impl LaneId {
    /// The lane's place among all lanes.
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }
}

/// A `[[models]]` entry, or what stands for one.
#[derive(Debug)]
pub(in crate::upstream) struct Lane {
    pub(in crate::upstream) id: LaneId,
    /// As the entry names the model, or how the names begin that it is for: see
    /// [`prefix`](Self::prefix).
    pub(in crate::upstream) name: String,
    /// The lane's own limit, where it has one.
    pub(in crate::upstream) concurrency: Option<usize>,
    is_auto: bool,
    pub(in crate::upstream) strategy: Strategy,
    pub(in crate::upstream) spill: Spill,
    /// The lower tier first; within a tier as the entry has them.
    pub(in crate::upstream) routes: Vec<Route>,
    /// The number of its lowest tier among the tiers of all lanes; the others follow.
    pub(in crate::upstream) first_tier: usize,
}

/// A way from a lane to an upstream.
#[derive(Debug)]
pub(in crate::upstream) struct Route {
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
}

/// How many calls at once a route takes.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct RouteLimit {
    /// Its number among the limits of all routes.
    pub(in crate::upstream) number: usize,
    pub(in crate::upstream) concurrency: usize,
}

impl Lane {
    /// All lanes, in the order of their numbers.
    pub(in crate::upstream) fn all(settings: &Settings) -> Result<Vec<Self>, BuildError> {
        let (upstreams, specs) = (&settings.upstreams, Spec::all(settings));
        if settings.models.is_empty() {
            return Ok(vec![Self::of_all(upstreams, &specs)]);
        }
        let models = settings.models.iter().enumerate();
        let lanes =
            models.map(|(index, model)| Self::of_model(LaneId(index), model, upstreams, &specs));
        let mut lanes = lanes.collect::<Result<Vec<_>, _>>()?;
        let (mut tiers, mut limits) = (0, 0);
        for lane in &mut lanes {
            lane.first_tier = tiers;
            tiers += lane.tiers().count();
            for limit in lane.routes.iter_mut().filter_map(|one| one.limit.as_mut()) {
                limit.number = limits;
                limits += 1;
            }
        }
        Ok(lanes)
    }

    /// The windows of all lanes, by their numbers, which the routes are told. There is one for a
    /// model at an upstream where the upstream, the model or a route between them asks for it: a
    /// bounded number, whatever names lines give.
    pub(in crate::upstream) fn windows(
        lanes: &mut [Self],
        upstreams: &[UpstreamSettings],
    ) -> Vec<WindowSpec> {
        let mut windows: Vec<WindowSpec> = Vec::new();
        let model_of = |name: &str, route: &Route| {
            let model = route.rename.as_deref().unwrap_or(name);
            model.to_owned()
        };
        for lane in lanes.iter() {
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
        for lane in lanes {
            for route in &mut lane.routes {
                let model = model_of(&lane.name, route);
                let mut all = windows.iter();
                route.window = all
                    .position(|window| window.upstream == route.upstream && window.model == model);
            }
        }
        windows
    }

    /// What each tier of all lanes needs to choose, by the tiers' numbers.
    pub(in crate::upstream) fn balancers(lanes: &[Self]) -> Vec<Balancer> {
        let tiers = lanes.iter().flat_map(|lane| {
            let tiers = lane.tiers();
            tiers.map(|routes| Balancer::new(lane.strategy, routes.len()))
        });
        tiers.collect()
    }

    fn of_model(
        id: LaneId,
        model: &ModelSettings,
        upstreams: &[UpstreamSettings],
        specs: &[Spec],
    ) -> Result<Self, BuildError> {
        let routes = model.routes.iter().enumerate();
        let routes = routes.map(|(place, route)| {
            let upstream = upstream_of(route, model, upstreams)?;
            let rate_limits = bounds(specs, Some((id.index(), place)), upstreams, upstream);
            Ok(Route::new(route, model, upstream, rate_limits))
        });
        let mut routes = routes.collect::<Result<Vec<_>, _>>()?;
        routes.sort_by_key(|route| route.tier);
        Ok(Self {
            id,
            name: model.name.clone(),
            concurrency: model.concurrency,
            is_auto: model.is_auto,
            strategy: model.balance,
            spill: model.spill,
            routes,
            first_tier: 0,
        })
    }

    /// The one lane of a configuration without models.
    fn of_all(upstreams: &[UpstreamSettings], specs: &[Spec]) -> Self {
        let route = |upstream| Route {
            upstream,
            weight: 1,
            tier: 0,
            rename: None,
            edit: None,
            limit: None,
            is_auto: false,
            window: None,
            rate_limits: bounds(specs, None, upstreams, upstream),
        };
        Self {
            id: LaneId(0),
            name: "*".to_owned(),
            concurrency: None,
            is_auto: false,
            strategy: Strategy::default(),
            spill: Spill::default(),
            routes: (0..upstreams.len()).map(route).collect(),
            first_tier: 0,
        }
    }

    /// How the names of models begin that the lane is for; `None` where it is for one model.
    pub(in crate::upstream) fn prefix(&self) -> Option<&str> {
        self.name.strip_suffix('*')
    }

    /// Its routes, tier by tier.
    pub(in crate::upstream) fn tiers(&self) -> impl Iterator<Item = &[Route]> {
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

/// The number of the upstream that a route leads to.
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
