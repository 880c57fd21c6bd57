//! `/v1/batches`.

use axum::Json;
use axum::extract::State;
use axum::response::Response;

use super::Api;
use super::auth::{BatchCaller, Caller};
use super::batch_object::BatchObject;
use super::batch_request::BatchRequest;
use super::batch_wait::Wait;
use super::error::{self, Envelope, Result};
use super::idempotency::{self, Begun, Key};
use super::page::{List, Query};
use super::path::Id;
use crate::store::{Cancel, Claim, NewBatch, Steered};

/// The route under which the `Idempotency-Key` of a new batch is stored.
const CREATE: &str = "POST /v1/batches";
const LIMITS: std::ops::RangeInclusive<i64> = 1..=100;
const LIMIT_DEFAULT: i64 = 20;

/// Creates a batch from an uploaded file, and begins to validate and run it.
#[utoipa::path(
    post,
    path = "/v1/batches",
    operation_id = "createBatch",
    tag = "Batches",
    params((
        "Idempotency-Key" = Option<String>, Header,
        description = "For 24 hours, the same request with the same key is done once, and \
            answered the same again.",
    )),
    request_body = BatchRequest,
    responses(
        (status = 200, description = "The batch, `validating`.", body = BatchObject),
        (status = 400, description = "Something in the request is wrong.", body = Envelope),
        (status = 408, description = "The body stopped coming.", body = Envelope),
        (status = 409, description = "The first request with the same `Idempotency-Key` is still \
            being worked on.", body = Envelope),
        (status = 413, description = "The body has more than 256 KiB.", body = Envelope),
        (status = 507, description = "There is no room for it.", body = Envelope),
    ),
)]
pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    key: Result<Key>,
    request: BatchRequest,
) -> Result<Response> {
    // Checked after the body was read: the client then gets the answer, and no broken connection.
    let key = key?;
    let fingerprint = idempotency::fingerprint(&request)?;
    // By the database's clock: by a slow clock of this machine the window would end too early.
    let now_ms = api.store.now().await?;
    match idempotency::begin(&api.store, &caller.tenant, CREATE, key).await? {
        Begun::Again(remembered) => idempotency::replay(remembered, &fingerprint),
        Begun::First(mut attempt) => {
            attempt.identify(fingerprint);
            let max_priority = api.tenants.of(&caller.tenant).max_priority;
            let batch = request.into_batch(
                caller,
                now_ms,
                api.retention.get().output_files,
                api.output.get().details,
                max_priority,
            )?;
            let created = store(&api, &batch, attempt.claim()).await;
            attempt.settle(&created).await;
            Ok(idempotency::json_response(created?))
        }
    }
}

/// Stores a batch, with its answer for the `Idempotency-Key`, and returns that answer.
async fn store(api: &Api, batch: &NewBatch, claim: Option<&Claim>) -> Result<String> {
    let body = super::json::to_json(&BatchObject::created(batch)?)?;
    let answer = claim.map(|claim| (claim, body.as_str()));
    api.store.create_batch(batch, answer).await?;
    tracing::info!(
        batch.id = batch.id,
        tenant = batch.tenant,
        key.id = batch.key_id,
        "a batch was created"
    );
    Ok(body)
}

/// Lists the caller's batches, the newest first.
#[utoipa::path(
    get,
    path = "/v1/batches",
    operation_id = "listBatches",
    tag = "Batches",
    params(
        ("after" = Option<String>, Query, description = "The id behind which the page begins."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 100,
            description = "How many batches the page may have; 20, unless said otherwise."),
    ),
    responses(
        (status = 200, description = "A page of them.", body = List<BatchObject>),
        (status = 400, description = "A parameter is wrong.", body = Envelope),
        (status = 404, description = "`after` names no batch of the caller's.", body = Envelope),
    ),
)]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    query: Query,
) -> Result<Json<List<BatchObject>>> {
    let limit = query.limit(LIMITS, LIMIT_DEFAULT)?;
    let after = match query.after() {
        None => None,
        Some(id) => match api.store.batch_position(&caller.tenant, id).await? {
            Some(position) => Some(position),
            None => return Err(error::cursor_not_found(id)),
        },
    };
    let page = api.store.batches(&caller.tenant, after, limit).await?;
    let batches = page.items.into_iter().map(BatchObject::try_from);
    let batches = batches.collect::<Result<Vec<_>>>()?;
    Ok(Json(List::new(batches, page.more, |batch| &batch.id)))
}

/// The tenant whose batch is meant: the caller's own, or with the scope `admin` the batch's. What
/// an operator does to a batch of another tenant is logged.
pub(super) async fn owner(api: &Api, caller: Caller, id: &str, act: &str) -> Result<String> {
    if !caller.scopes.open_every_batch() {
        return Ok(caller.tenant);
    }
    let owner = api.store.owner_of_batch(id).await?;
    let owner = owner.ok_or_else(|| error::batch_not_found(id))?;
    if !caller.scopes.open_the_api() || owner != caller.tenant {
        tracing::info!(
            act,
            batch.id = id,
            tenant = owner,
            key.id = caller.key_id,
            "an operator acts on a tenant's batch"
        );
    }
    Ok(owner)
}

/// Retrieves a batch.
///
/// A key of the scope `admin` retrieves any tenant's; the log says so.
#[utoipa::path(
    get,
    path = "/v1/batches/{batch_id}",
    operation_id = "retrieveBatch",
    tag = "Batches",
    params(
        ("batch_id" = String, Path, description = "The batch's id."),
        ("wait" = Option<i64>, Query, minimum = 0, maximum = 300,
            description = "The answer comes when the batch's status changes, or after so many \
                seconds."),
        ("status" = Option<String>, Query,
            description = "With `wait`: the status that the caller knows of. Where the batch has \
                another one, the answer comes at once."),
    ),
    responses(
        (status = 200, description = "The batch.", body = BatchObject),
        (status = 400, description = "A parameter is wrong.", body = Envelope),
        (status = 404, description = "The caller has no such batch.", body = Envelope),
    ),
)]
pub async fn retrieve(
    State(api): State<Api>,
    BatchCaller(caller): BatchCaller,
    Id(id): Id,
    query: Query,
) -> Result<Json<BatchObject>> {
    let wait = Wait::of(&query)?;
    let tenant = owner(&api, caller, &id, "retrieve").await?;
    let batch = match (api.looks.batch(&tenant, &id).await?, wait) {
        (Some(batch), Some(wait)) => wait.change(&api, batch).await?,
        (batch, _) => batch,
    };
    match batch {
        Some(batch) => Ok(Json(batch.try_into()?)),
        None => Err(error::batch_not_found(&id)),
    }
}

/// Cancels a batch: lines that have not been sent never will be, and what has been answered is
/// kept.
///
/// A key of the scope `admin` cancels any tenant's; the log says so.
#[utoipa::path(
    post,
    path = "/v1/batches/{batch_id}/cancel",
    operation_id = "cancelBatch",
    tag = "Batches",
    params(("batch_id" = String, Path, description = "The batch's id.")),
    responses(
        (status = 200, description = "The batch, `cancelling` or `cancelled`; as it was, if all \
            its lines have run.", body = BatchObject),
        (status = 404, description = "The caller has no such batch.", body = Envelope),
        (status = 409, description = "The batch has ended already.", body = Envelope),
    ),
)]
pub async fn cancel(
    State(api): State<Api>,
    BatchCaller(caller): BatchCaller,
    Id(id): Id,
) -> Result<Json<BatchObject>> {
    let tenant = owner(&api, caller, &id, "cancel").await?;
    match api.store.cancel_batch(&tenant, &id).await? {
        Cancel::Granted(batch) => Ok(Json((*batch).try_into()?)),
        Cancel::Refused(status) => Err(error::conflict(format!(
            "Cannot cancel a batch with status '{status}'."
        ))),
        Cancel::NotFound => Err(error::batch_not_found(&id)),
    }
}

/// Pauses a batch: nothing new of it is sent. Calls in flight finish, and the window goes on.
///
/// The status stays as it is; `nightshift.paused` says it. A call that began within a second of the
/// answer may still be one of the batch's. A key of the scope `admin` pauses any tenant's batch; the
/// log says so.
#[utoipa::path(
    post,
    path = "/v1/batches/{batch_id}/pause",
    operation_id = "pauseBatch",
    tag = "Batches",
    params(("batch_id" = String, Path, description = "The batch's id.")),
    responses(
        (status = 200, description = "The batch, paused.", body = BatchObject),
        (status = 404, description = "The caller has no such batch.", body = Envelope),
        (status = 409, description = "No line of the batch is sent any more in any case.",
            body = Envelope),
    ),
)]
pub async fn pause(
    State(api): State<Api>,
    BatchCaller(caller): BatchCaller,
    Id(id): Id,
) -> Result<Json<BatchObject>> {
    let key_id = caller.key_id.clone();
    let tenant = owner(&api, caller, &id, "pause").await?;
    let paused = api.store.pause_batch(&tenant, &id, key_id.as_deref());
    steered(paused.await?, &id, "pause", key_id.as_deref())
}

/// Resumes a batch that was paused.
///
/// A key of the scope `admin` resumes any tenant's; the log says so.
#[utoipa::path(
    post,
    path = "/v1/batches/{batch_id}/resume",
    operation_id = "resumeBatch",
    tag = "Batches",
    params(("batch_id" = String, Path, description = "The batch's id.")),
    responses(
        (status = 200, description = "The batch, which is not paused.", body = BatchObject),
        (status = 404, description = "The caller has no such batch.", body = Envelope),
        (status = 409, description = "No line of the batch is sent any more in any case.",
            body = Envelope),
    ),
)]
pub async fn resume(
    State(api): State<Api>,
    BatchCaller(caller): BatchCaller,
    Id(id): Id,
) -> Result<Json<BatchObject>> {
    let key_id = caller.key_id.clone();
    let tenant = owner(&api, caller, &id, "resume").await?;
    let resumed = api.store.resume_batch(&tenant, &id);
    steered(resumed.await?, &id, "resume", key_id.as_deref())
}

/// The answer to who has asked to steer a batch.
fn steered(
    steered: Steered,
    id: &str,
    act: &str,
    key_id: Option<&str>,
) -> Result<Json<BatchObject>> {
    match steered {
        Steered::Done(batch) => {
            tracing::info!(act, batch.id = id, key.id = key_id, "a batch is steered");
            Ok(Json((*batch).try_into()?))
        }
        Steered::Refused(status) => Err(error::conflict(format!(
            "Cannot {act} a batch with status '{status}'."
        ))),
        Steered::NotFound => Err(error::batch_not_found(id)),
    }
}
