//! Which upstreams serve which model: from the configuration, or, without `[[models]]`, from what
//! the upstreams report.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use super::ModelInfo;
use crate::metrics::{CallSeconds, OTHER, metrics};
use crate::upstream::provider::edit::Edit;
use crate::upstream::settings::{BuildError, ModelSettings, Settings, UpstreamSettings};
use crate::upstream::target::backend::{Backend, Backends};

/// Names resolved by a wildcard that are remembered: what users write must not fill the memory.
const CACHED_MAX: usize = 10_000;

/// Which concurrency limit a model counts against: one a `[[models]]` entry, or one for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub usize);

/// Where the lines of a model can go.
#[derive(Debug)]
pub struct Routes {
    pub lane: LaneId,
    pub(super) targets: Box<[Target]>,
}

/// A model at an upstream.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) backend: Arc<Backend>,
    pub(super) weight: u32,
    pub(super) edit: Option<Arc<Edit>>,
    pub(super) seconds: CallSeconds,
}

#[derive(Debug)]
pub(super) struct Routing {
    exact: HashMap<String, Arc<Routes>>,
    /// Serves every other name; without `[[models]]`, every name.
    wildcard: Option<Entry>,
    /// Without `[[models]]`, and with a choice: upstreams get the models that they report.
    by_report: bool,
    /// The configured names; `None` without `[[models]]`.
    configured: Option<Vec<String>>,
    known: RwLock<Known>,
    backends: Arc<Backends>,
}

/// What is learned while running. One lock: a route made from an old list must not outlive it.
#[derive(Debug)]
struct Known {
    /// By upstream; `None`: it has never told.
    reported: Vec<Option<Vec<ModelInfo>>>,
    resolved: HashMap<String, Arc<Routes>>,
}

/// A `[[models]]` entry, or what stands for one.
#[derive(Debug)]
struct Entry {
    lane: LaneId,
    routes: Vec<Route>,
}

#[derive(Debug)]
struct Route {
    upstream: usize,
    /// The upstream's.
    name: String,
    weight: u32,
    rename: Option<Arc<str>>,
    edit: Option<Arc<Edit>>,
}

/// What lists call a model that a line or a route names, if it is in one. Ollama lists `x:latest`
/// and answers to `x`, too: that is this model where no other has the name.
pub(super) fn listed_as<'m>(
    models: impl Iterator<Item = &'m ModelInfo>,
    name: &str,
) -> Option<String> {
    let latest = format!("{name}:latest");
    let mut is_latest_listed = false;
    for model in models {
        if model.id == name {
            return Some(name.to_owned());
        }
        is_latest_listed |= model.id == latest;
    }
    is_latest_listed.then_some(latest)
}

impl Routes {
    /// The upstreams that it goes to, by their index.
    pub fn upstreams(&self) -> impl Iterator<Item = usize> {
        self.targets.iter().map(|target| target.backend.upstream)
    }
}

impl Routing {
    pub(super) fn new(settings: &Settings, backends: Arc<Backends>) -> Result<Self, BuildError> {
        let upstreams = &settings.upstreams;
        let mut exact = HashMap::new();
        let mut wildcard = None;
        for (index, model) in settings.models.iter().enumerate() {
            let entry = Entry::new(LaneId(index), model, upstreams)?;
            if model.name == "*" {
                wildcard = Some(entry);
            } else {
                let routes = entry.routes_of(&backends, &model.name, &model.name, |_| true);
                exact.insert(model.name.clone(), Arc::new(routes));
            }
        }
        let unconfigured = settings.models.is_empty();
        if unconfigured && !upstreams.is_empty() {
            wildcard = Some(Entry::of_all(upstreams));
        }
        let names = settings.models.iter().map(|model| &model.name);
        let listed = names.filter(|name| !matches!(name.as_str(), "*" | ""));
        Ok(Self {
            exact,
            wildcard,
            by_report: unconfigured && upstreams.len() > 1,
            configured: (!unconfigured).then(|| listed.cloned().collect()),
            known: RwLock::new(Known {
                reported: vec![None; upstreams.len()],
                resolved: HashMap::new(),
            }),
            backends,
        })
    }

    /// Whether anybody wants to know what upstreams report.
    pub(super) fn wants_reports(&self) -> bool {
        self.configured.is_none()
    }

    /// Whether models are routed by what upstreams report.
    pub(super) fn needs_reports(&self) -> bool {
        self.by_report
    }

    /// Takes in the models that an upstream reports; true if that is news.
    pub(super) fn report(&self, upstream: usize, models: Vec<ModelInfo>) -> bool {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.reported[upstream].as_ref() == Some(&models) {
            return false;
        }
        known.reported[upstream] = Some(models);
        known.resolved.clear();
        true
    }

    pub(super) fn resolve(&self, model: &str) -> Option<Arc<Routes>> {
        if let Some(routes) = self.exact.get(model) {
            return Some(Arc::clone(routes));
        }
        let entry = self.wildcard.as_ref()?;
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(routes) = known.resolved.get(model) {
            return Some(Arc::clone(routes));
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let routes = Arc::new(self.route(entry, model, &known.reported)?);
        if known.resolved.len() >= CACHED_MAX {
            known.resolved.clear();
        }
        known.resolved.insert(model.to_owned(), Arc::clone(&routes));
        Some(routes)
    }

    fn route(
        &self,
        entry: &Entry,
        model: &str,
        reported: &[Option<Vec<ModelInfo>>],
    ) -> Option<Routes> {
        let listed = listed_as(reported.iter().flatten().flatten(), model);
        let label = listed.as_deref().unwrap_or(OTHER);
        let model = listed.as_deref().unwrap_or(model);
        let has = |models: &Vec<ModelInfo>| models.iter().any(|known| known.id == model);
        if !self.by_report || model.is_empty() {
            return Some(entry.routes_of(&self.backends, model, label, |_| true));
        }
        let routes = entry.routes_of(&self.backends, model, label, |upstream| {
            reported[upstream].as_ref().is_some_and(has)
        });
        if !routes.targets.is_empty() {
            return Some(routes);
        }
        // Nobody says that he has it; those that have never said anything may.
        let routes = entry.routes_of(&self.backends, model, label, |upstream| {
            reported[upstream].is_none()
        });
        (!routes.targets.is_empty()).then_some(routes)
    }

    pub(super) fn label(&self, model: &str) -> String {
        if model.is_empty() || self.exact.contains_key(model) {
            return if model.is_empty() { OTHER } else { model }.to_owned();
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let listed = listed_as(known.reported.iter().flatten().flatten(), model);
        listed.unwrap_or_else(|| OTHER.to_owned())
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
        let all = known.reported.iter().flatten().flatten();
        let mut by_id = BTreeMap::new();
        for model in all {
            by_id.entry(&model.id).or_insert(model);
        }
        by_id.into_values().cloned().collect()
    }
}

impl Entry {
    fn new(
        lane: LaneId,
        model: &ModelSettings,
        upstreams: &[UpstreamSettings],
    ) -> Result<Self, BuildError> {
        let mut routes = Vec::with_capacity(model.routes.len());
        for route in &model.routes {
            let named = |upstream: &UpstreamSettings| upstream.name == route.upstream;
            let upstream = upstreams.iter().position(named).ok_or_else(|| BuildError {
                upstream: route.upstream.clone(),
                problem: format!(
                    "model `{}` has a route to it, but it is not there",
                    model.name
                ),
            })?;
            let edit = Edit::new(route.model.as_deref(), &model.defaults);
            routes.push(Route {
                upstream,
                name: route.upstream.clone(),
                weight: route.weight.max(1),
                rename: route.model.as_deref().map(Into::into),
                edit: edit.map(Arc::new),
            });
        }
        Ok(Self { lane, routes })
    }

    fn of_all(upstreams: &[UpstreamSettings]) -> Self {
        let route = |upstream: usize| Route {
            upstream,
            name: upstreams[upstream].name.clone(),
            weight: 1,
            rename: None,
            edit: None,
        };
        Self {
            lane: LaneId(0),
            routes: (0..upstreams.len()).map(route).collect(),
        }
    }

    /// `label`: what metrics call the model.
    fn routes_of(
        &self,
        backends: &Backends,
        model: &str,
        label: &str,
        goes_to: impl Fn(usize) -> bool,
    ) -> Routes {
        let routes = self.routes.iter().filter(|route| goes_to(route.upstream));
        let named = |route: &Route| route.rename.clone().unwrap_or_else(|| model.into());
        let targets = routes.map(|route| Target {
            backend: backends.get(route.upstream, &named(route)),
            weight: route.weight,
            edit: route.edit.clone(),
            seconds: metrics().call_seconds(&route.name, label),
        });
        Routes {
            lane: self.lane,
            targets: targets.collect(),
        }
    }
}
