//! Lanes and their routes, as the settings have them. This is the one place that numbers lanes, and
//! that finds upstreams by their names.

use std::sync::Arc;

use crate::upstream::provider::edit::Edit;
use crate::upstream::settings::{BuildError, ModelSettings, Settings, UpstreamSettings};

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
    /// As the entry names the model; `*` for any other.
    pub(in crate::upstream) name: String,
    /// The lane's own limit, where it has one.
    pub(in crate::upstream) concurrency: Option<usize>,
    pub(in crate::upstream) routes: Vec<Route>,
}

/// A way from a lane to an upstream.
#[derive(Debug)]
pub(in crate::upstream) struct Route {
    /// The upstream's number.
    pub(in crate::upstream) upstream: usize,
    pub(in crate::upstream) weight: u32,
    /// What the upstream calls the model, where that differs.
    pub(in crate::upstream) rename: Option<Arc<str>>,
    pub(in crate::upstream) edit: Option<Arc<Edit>>,
}

impl Lane {
    /// All lanes, in the order of their numbers.
    pub(in crate::upstream) fn all(settings: &Settings) -> Result<Vec<Self>, BuildError> {
        let upstreams = &settings.upstreams;
        if settings.models.is_empty() {
            return Ok(vec![Self::of_all(upstreams)]);
        }
        let models = settings.models.iter().enumerate();
        models
            .map(|(index, model)| Self::of_model(LaneId(index), model, upstreams))
            .collect()
    }

    fn of_model(
        id: LaneId,
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
                weight: route.weight.max(1),
                rename: route.model.as_deref().map(Into::into),
                edit: edit.map(Arc::new),
            });
        }
        Ok(Self {
            id,
            name: model.name.clone(),
            concurrency: model.concurrency,
            routes,
        })
    }

    /// The one lane of a configuration without models.
    fn of_all(upstreams: &[UpstreamSettings]) -> Self {
        let route = |upstream| Route {
            upstream,
            weight: 1,
            rename: None,
            edit: None,
        };
        Self {
            id: LaneId(0),
            name: "*".to_owned(),
            concurrency: None,
            routes: (0..upstreams.len()).map(route).collect(),
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
