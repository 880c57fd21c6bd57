//! `/v1/files`: what was uploaded, and what batches made.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::auth::Caller;
use super::error::{self, Envelope, Result};
use super::page::{List, Query};
use super::path::Id;
use crate::domain::clock::seconds;
use crate::domain::file::Purpose;
use crate::store::StoredFile;

/// How many files a page may have. Old clients do not ask for a second page.
const LIMITS: std::ops::RangeInclusive<i64> = 1..=10_000;
const LIMIT_DEFAULT: i64 = 10_000;

/// A file. Times are in Unix seconds.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = File)]
pub struct FileObject {
    #[schema(example = "file-06K9TzEqNvhs3hYh4YQk7n")]
    pub id: String,
    /// Always `file`.
    #[schema(example = "file")]
    pub object: &'static str,
    /// How long its content is.
    pub bytes: i64,
    pub created_at: i64,
    /// When it will be removed; null for never.
    pub expires_at: Option<i64>,
    pub filename: String,
    /// What it was uploaded for; `batch_output` for what a batch made.
    #[schema(example = "batch")]
    pub purpose: String,
    /// Always `processed`: a file is there once it is whole.
    #[schema(example = "processed")]
    pub status: &'static str,
    /// Always null.
    pub status_details: Option<String>,
}

impl From<StoredFile> for FileObject {
    fn from(file: StoredFile) -> Self {
        Self {
            id: file.id,
            object: "file",
            bytes: file.bytes,
            created_at: seconds(file.created_at),
            expires_at: file.expires_at.map(seconds),
            filename: file.filename,
            purpose: file.purpose,
            status: "processed",
            status_details: None,
        }
    }
}

/// That a file was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedFile {
    pub id: String,
    /// Always `file`.
    #[schema(example = "file")]
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// Lists the caller's files.
#[utoipa::path(
    get,
    path = "/v1/files",
    operation_id = "listFiles",
    tag = "Files",
    params(
        ("purpose" = Option<String>, Query, description = "Only files of that purpose."),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 10_000,
            description = "How many files the page may have; 10000, unless said otherwise."),
        ("order" = Option<String>, Query,
            description = "`desc`, the newest first, unless it is `asc`."),
        ("after" = Option<String>, Query, description = "The id behind which the page begins."),
    ),
    responses(
        (status = 200, description = "A page of them.", body = List<FileObject>),
        (status = 400, description = "A parameter is wrong.", body = Envelope),
        (status = 404, description = "`after` names no file of the caller's.", body = Envelope),
    ),
)]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    query: Query,
) -> Result<Json<List<FileObject>>> {
    let limit = query
        .limit(LIMITS, LIMIT_DEFAULT)
        .map_err(|_| error::files_limit(&LIMITS))?;
    let order = query.order()?;
    let after = match query.after() {
        None => None,
        Some(id) => {
            let position = api.store.file_position(&caller.tenant, id).await?;
            Some(position.ok_or_else(|| error::cursor_not_found(id))?)
        }
    };
    let purpose = match query.text("purpose").map(Purpose::parse) {
        None => None,
        Some(Some(purpose)) => Some(purpose),
        // OpenAI has purposes that are not known here. There are no files of those.
        Some(None) => return Ok(Json(List::new(Vec::new(), false, id))),
    };
    let page = api
        .store
        .files(&caller.tenant, purpose, order, after, limit)
        .await?;
    let files = page.items.into_iter().map(FileObject::from).collect();
    Ok(Json(List::new(files, page.more, id)))
}

fn id(file: &FileObject) -> &str {
    &file.id
}

/// Retrieves a file's description.
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}",
    operation_id = "retrieveFile",
    tag = "Files",
    params(("file_id" = String, Path, description = "The file's id.")),
    responses(
        (status = 200, description = "The file.", body = FileObject),
        (status = 404, description = "The caller has no such file.", body = Envelope),
    ),
)]
pub async fn retrieve(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<FileObject>> {
    Ok(Json(find(&api, &caller, &id).await?.into()))
}

/// Deletes a file.
///
/// It is gone at once; a batch that runs on it keeps its content to the end.
#[utoipa::path(
    delete,
    path = "/v1/files/{file_id}",
    operation_id = "deleteFile",
    tag = "Files",
    params(("file_id" = String, Path, description = "The file's id.")),
    responses(
        (status = 200, description = "It is deleted.", body = DeletedFile),
        (status = 404, description = "The caller has no such file.", body = Envelope),
    ),
)]
pub async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<DeletedFile>> {
    if !api.store.delete_file(&caller.tenant, &id).await? {
        return Err(error::file_not_found(&id));
    }
    tracing::info!(file.id = id, tenant = caller.tenant, "a file was deleted");
    Ok(Json(DeletedFile {
        id,
        object: "file",
        deleted: true,
    }))
}

/// The caller's file of that id.
pub(super) async fn find(api: &Api, caller: &Caller, id: &str) -> Result<StoredFile> {
    let file = api.store.file(&caller.tenant, id).await?;
    file.ok_or_else(|| error::file_not_found(id))
}

#[cfg(test)]
mod tests;
