//! `/v1/models`: what lines can name as their `model`.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::auth::Caller;
use super::error::{self, Result};
use super::model_object::ModelObject;
use super::path::Id;

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// Always `list`.
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<ModelObject>,
}

/// Lists the models that batches can use.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "listModels",
    tag = "Models",
    responses((status = 200, description = "All of them.", body = ModelList)),
)]
pub async fn list(State(api): State<Api>, caller: Caller) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: usable(&api, &caller).collect(),
    })
}

/// Retrieves a model.
///
/// A slash in its name can be sent as it is, or as `%2F`.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    operation_id = "retrieveModel",
    tag = "Models",
    params(("model" = String, Path, description = "The model's name.")),
    responses(
        (status = 200, description = "The model.", body = ModelObject),
        (status = 404, description = "There is none of that name.", body = error::Envelope),
    ),
)]
pub async fn retrieve(
    State(api): State<Api>,
    caller: Caller,
    Id(name): Id,
) -> Result<Json<ModelObject>> {
    find(&api, &caller, &name)
}

/// Retrieves a model whose name was sent with slashes in it.
pub async fn retrieve_slashed(
    State(api): State<Api>,
    caller: Caller,
    names: std::result::Result<Path<(String, String)>, axum::extract::rejection::PathRejection>,
) -> Result<Json<ModelObject>> {
    let Path((first, rest)) =
        names.map_err(|_| error::bad_request("The path of the URL is not valid UTF-8."))?;
    find(&api, &caller, &format!("{first}/{rest}"))
}

/// The models that the caller's tenant may use.
fn usable(api: &Api, caller: &Caller) -> impl Iterator<Item = ModelObject> + use<> {
    let allowance = api.tenants.of(&caller.tenant);
    let models = api.engine.models().into_iter();
    models.filter(move |model| allowance.may_use(&model.id))
}

fn find(api: &Api, caller: &Caller, name: &str) -> Result<Json<ModelObject>> {
    let mut models = usable(api, caller);
    models
        .find(|model| model.id == name)
        .map(Json)
        .ok_or_else(|| error::model_not_found(name))
}
