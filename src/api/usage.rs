//! What was used, and what it cost: as OpenAI tells an organization, and as operators want it.

mod admin;
mod csv;
mod organization;

pub(super) use admin::{__path_of_all, of_all};
pub use admin::{AdminUsage, UsageEntry, UsageFigures};
pub(super) use organization::{
    __path_completions, __path_costs, __path_embeddings, __path_images, __path_moderations,
    completions, costs, embeddings, images, moderations,
};
