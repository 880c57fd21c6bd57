//! What the API asks of the engine that runs beside it in its process. The API knows neither the
//! workers nor the upstreams. `app` makes the [`Engine`] for it.

use super::model_object::ModelObject;
use crate::metrics::ProcessSnapshot;

/// The engine of this process. No method waits.
pub trait Engine: Send + Sync {
    /// How things stand in this process at this moment.
    fn snapshot(&self) -> ProcessSnapshot;

    /// The models that can be asked for at the moment.
    fn models(&self) -> Vec<ModelObject>;

    /// What metrics call the lines of a batch, which may have a task, that name this model.
    fn label(&self, task: Option<&str>, model: &str) -> String;

    /// What all prices and costs are in, in lower case.
    fn currency(&self) -> String;

    /// Whether the workers of this process run. Always true in a process that has none.
    fn is_running(&self) -> bool;

    /// Opens an upstream and its models, because an operator says that they are mended. False if no
    /// upstream has the name.
    fn reset(&self, upstream: &str) -> bool;
}
