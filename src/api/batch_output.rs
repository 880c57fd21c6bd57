//! `/v1/batches/{id}/output` and `/errors`: the lines of a batch that are finished, while it runs.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use utoipa::IntoParams;

use super::Api;
use super::auth::Caller;
use super::error::{self, Envelope, Result};
use super::integer::integer;
use super::page::Query;
use super::path::Id;
use crate::domain::file::Kind;
use crate::transfer::{SoFar, Wanted};

/// The `after` of whoever wants what follows.
const NEXT: HeaderName = HeaderName::from_static("x-nightshift-next");
/// `true` where the batch has ended and nothing follows.
const COMPLETE: HeaderName = HeaderName::from_static("x-nightshift-complete");
const LIMITS: std::ops::RangeInclusive<i64> = 1..=100_000;

/// What a client may ask for.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(
    dead_code,
    reason = "the document is made of it; `Query` reads the values"
)]
struct Asked {
    /// The number of the line behind which the answer begins. Lines count from 1, as in the input
    /// file.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// How many lines the answer may have; all, unless said otherwise.
    #[param(minimum = 1, maximum = 100_000)]
    limit: Option<i64>,
}

/// The lines that have been answered with 2xx so far, in input order, while the batch runs.
///
/// The header `x-nightshift-next` has the number of the last line that is sent, which is the
/// `after` of the next request; `x-nightshift-complete` says whether the batch has ended and
/// nothing follows. Lines that are finished later than a line behind them are not in answers to
/// later requests: ask from the beginning for these, or wait for the output file.
#[utoipa::path(
    get,
    path = "/v1/batches/{batch_id}/output",
    operation_id = "retrieveBatchOutput",
    tag = "Batches",
    params(
        ("batch_id" = String, Path, description = "The batch's id."),
        Asked,
    ),
    responses(
        (status = 200, description = "The lines.", content_type = "application/jsonl",
            body = String),
        (status = 400, description = "A parameter is wrong.", body = Envelope),
        (status = 404, description = "The caller has no such batch.", body = Envelope),
        (status = 409, description = "The input file is gone, and with it the numbers of its \
            lines.", body = Envelope),
        (status = 410, description = "The batch has ended, and its file is gone.",
            body = Envelope),
    ),
)]
pub async fn output(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    query: Query,
) -> Result<Response> {
    finished(&api, &caller, &id, &query, Kind::Output).await
}

/// The lines that have failed so far, in input order, while the batch runs.
///
/// Parameters and headers are those of the output.
#[utoipa::path(
    get,
    path = "/v1/batches/{batch_id}/errors",
    operation_id = "retrieveBatchErrors",
    tag = "Batches",
    params(
        ("batch_id" = String, Path, description = "The batch's id."),
        Asked,
    ),
    responses(
        (status = 200, description = "The lines.", content_type = "application/jsonl",
            body = String),
        (status = 400, description = "A parameter is wrong.", body = Envelope),
        (status = 404, description = "The caller has no such batch.", body = Envelope),
        (status = 409, description = "The input file is gone, and with it the numbers of its \
            lines.", body = Envelope),
        (status = 410, description = "The batch has ended, and its file is gone.",
            body = Envelope),
    ),
)]
pub async fn errors(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    query: Query,
) -> Result<Response> {
    finished(&api, &caller, &id, &query, Kind::Error).await
}

async fn finished(
    api: &Api,
    caller: &Caller,
    id: &str,
    query: &Query,
    kind: Kind,
) -> Result<Response> {
    let after = query.text("after").unwrap_or("0");
    let after = integer("after", after, &(0..=i64::MAX))?.unsigned_abs();
    let limit = query.text("limit");
    let limit = limit.map(|given| integer("limit", given, &LIMITS));
    let limit = limit.transpose()?.map(i64::unsigned_abs);
    for (name, instead) in [
        (
            "follow",
            "Ask again with the `x-nightshift-next` of this answer as `after`.",
        ),
        ("merged", "Ask for the output of each batch."),
    ] {
        if query.text(name).is_some_and(|value| value != "false") {
            let message = format!("'{name}' is not supported yet. {instead}");
            return Err(error::invalid_value_because(name, message));
        }
    }
    let batch = api.looks.batch(&caller.tenant, id).await?;
    let batch = batch.ok_or_else(|| error::batch_not_found(id))?;
    // Known before the lines are looked at: all of them are there by then.
    let mut size = None;
    let has_ended = batch.state.status.is_terminal();
    if has_ended {
        let file_id = match kind {
            Kind::Output => &batch.row.output_file_id,
            Kind::Error => &batch.row.error_file_id,
        };
        let Some(file_id) = file_id else {
            return Ok(answer(after, true, Body::empty()));
        };
        let file = api.store.file(&caller.tenant, file_id).await?;
        let file = file.ok_or_else(|| error::output_gone(file_id))?;
        if after == 0 && limit.is_none() {
            // A client sees by it whether an answer broke off.
            size = Some(file.bytes.unsigned_abs());
        }
    }
    let counts = &batch.counts;
    let lines = match kind {
        Kind::Output => counts.completed,
        Kind::Error => counts.failed + counts.cancelled,
    };
    if lines == 0 && !has_ended {
        return Ok(answer(after, false, Body::empty()));
    }
    let wanted = Wanted {
        batch_id: batch.row.id,
        input_file_id: batch.row.input_file_id,
        kind,
        after,
        limit: limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
    };
    let input = wanted.input_file_id.clone();
    let so_far = SoFar::look(&api.store, wanted).await?;
    let so_far = so_far.ok_or_else(|| error::input_gone(&input))?;
    let next = so_far.last.unwrap_or(after);
    let is_complete = has_ended && so_far.is_whole;
    // The first bytes are read before the answer begins, so that an error there can be the answer.
    let mut blocks = Box::pin(so_far.blocks(api.store.clone()));
    let Some(first) = blocks.next().await else {
        return Ok(answer(next, is_complete, Body::empty()));
    };
    let id = id.to_owned();
    let blocks = stream::iter([Ok(first?)])
        .chain(blocks)
        .inspect(move |block| {
            if let Err(error) = block {
                tracing::error!(%error, batch.id = id, "the output so far was broken off");
            }
        });
    let mut answer = answer(next, is_complete, Body::from_stream(blocks));
    if let Some(size) = size {
        let size = HeaderValue::from(size);
        answer.headers_mut().insert(header::CONTENT_LENGTH, size);
    }
    Ok(answer)
}

fn answer(next: u64, is_complete: bool, body: Body) -> Response {
    let complete = if is_complete { "true" } else { "false" };
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/jsonl"),
        ),
        (NEXT, HeaderValue::from(next)),
        (COMPLETE, HeaderValue::from_static(complete)),
    ];
    (headers, body).into_response()
}
