//! Models, as upstreams list them.

/// A model, as `GET /v1/models` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    pub id: String,
    /// Unix seconds; 0 where the upstream does not say.
    pub created: i64,
    pub owned_by: String,
    /// The date on which the upstream stops serving the model, as the upstream writes it.
    pub shutdown_date: Option<String>,
}

/// Whether a list of models has one that is named so: as lines of that model are routed.
#[must_use]
pub fn is_listed(models: &[ModelInfo], name: &str) -> bool {
    listed_as(models.iter(), name).is_some()
}

/// What lists call a model that a line or a route names, if the model is in one. Ollama lists
/// `x:latest` and answers to `x`, too: `x` is that model where no other model has the name.
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
