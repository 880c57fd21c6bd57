//! `POST /v1/files`. The parts of the form may come in any order. The file is stored as it is
//! received, so it may be of any size.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::stream;
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::Api;
use super::auth::Caller;
use super::drain::expects_continue;
use super::error::{self, ApiError, Envelope, Result};
use super::expiry::{self, ANCHOR};
use super::files::FileObject;
use super::headers::content_length;
use super::idempotency::{self, Attempt, Begun, Key, fingerprint, json_response, replay};
use super::integer::integer;
use super::multipart::{self, Form, Incoming, Part};
use crate::domain::file::{EXPIRY_SECONDS, Purpose};
use crate::intake::{Contents, Limits};
use crate::store::storable;
use crate::store::{self, StoredFile};
use crate::transfer::{self, Answer, Finish, Ingest, NoContent, Packing, Unpacked};

/// What a file is called that is uploaded without a name.
const UNNAMED: &str = "upload";
/// How long a file's name may be. Every answer that shows the file repeats its name.
const FILENAME_CHARS_MAX: usize = 255;
/// How many bytes the rest of a form may have beside its file.
const FORM_BYTES_MAX: u64 = 8 << 20;
const EXPIRY_ANCHOR: &str = "expires_after[anchor]";
const EXPIRY_IN_SECONDS: &str = "expires_after[seconds]";

/// The form by which a file is uploaded.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "it describes the form, which is read part by part"
)]
pub struct UploadForm {
    /// The file.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// What it is for: `assistants`, `batch`, `fine-tune`, `vision`, `user_data` or `evals`.
    #[schema(example = "batch")]
    purpose: String,
    /// From when on it is kept for so long: `created_at`.
    #[schema(rename = "expires_after[anchor]")]
    expires_after_anchor: Option<String>,
    /// How long it is kept, in seconds. Where nobody says, a file for batches is kept for 30 days
    /// and any other for ever, unless the server is configured otherwise.
    #[schema(rename = "expires_after[seconds]", minimum = 3600, maximum = 2_592_000)]
    expires_after_seconds: Option<i64>,
}

/// Uploads a file.
///
/// A file for batches is checked at once. What is wrong with its lines is reported by the batch.
#[utoipa::path(
    post,
    path = "/v1/files",
    operation_id = "createFile",
    tag = "Files",
    params(("Idempotency-Key" = Option<String>, Header,
        description = "Makes the same upload, sent again, have the same answer for a day.")),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The file.", body = FileObject),
        (status = 400, description = "The form or the file is wrong.", body = Envelope),
        (status = 408, description = "Nothing came for a minute, or too little for 10 s while \
            other uploads waited.", body = Envelope),
        (status = 409, description = "The same upload is still under way.", body = Envelope),
        (status = 413, description = "The file is too large, or there is no room for it among the \
            tenant's files (`storage_limit_exceeded`).", body = Envelope),
        (status = 507, description = "There is no room for it.", body = Envelope),
    ),
)]
pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    key: Result<Key>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let mut incoming = Incoming::new(body);
    let outcome = match key {
        Ok(key) => upload(&api, &caller, key, &headers, &mut incoming).await,
        Err(error) => Err(error),
    };
    // The rest of a body that came too slowly is not waited for.
    let status = outcome.as_ref().err().map(|error| error.status);
    let is_wanted = status.is_some_and(|status| status != StatusCode::REQUEST_TIMEOUT);
    if is_wanted && (incoming.begun() || !expects_continue(&headers)) {
        incoming.drain().await;
    }
    outcome
}

async fn upload(
    api: &Api,
    caller: &Caller,
    key: Key,
    headers: &HeaderMap,
    incoming: &mut Incoming,
) -> Result<Response> {
    let boundary = multipart::boundary(headers)?;
    let max_bytes = api.limits.get().max_file_bytes;
    if content_length(headers)
        .is_some_and(|length| length > max_bytes.saturating_add(FORM_BYTES_MAX))
    {
        return Err(error::too_large(max_bytes));
    }
    let hashed = key.0.is_some();
    let mut upload = Upload {
        api,
        caller,
        form: Form::new(incoming, boundary),
        room: Room::new(max_bytes),
        hash: hashed.then(Sha256::new),
        asked: Asked::default(),
    };
    match idempotency::begin(&api.store, &caller.tenant, "POST /v1/files", key).await? {
        Begun::First(mut attempt) => {
            let outcome = match upload.find_room(content_length(headers)).await {
                Ok(()) => upload.store(&mut attempt).await,
                Err(error) => Err(error),
            };
            attempt.settle(&outcome).await;
            outcome.map(json_response)
        }
        Begun::Again(remembered) => {
            upload.receive(&mut Sink::Nowhere).await?;
            let request = upload.request()?;
            replay(remembered, &request.fingerprint)
        }
    }
}

fn limits(api: &Api) -> Limits {
    Limits {
        max_line_bytes: api.limits.get().max_line_bytes,
        max_models: api.limits.get().max_models_per_file,
        endpoints: api.endpoints,
    }
}

/// How many bytes a file may have.
#[derive(Clone, Debug)]
struct Room {
    /// Whoever's it is.
    max_bytes: u64,
    of_tenant: Option<TenantRoom>,
}

/// What the files of a tenant may have together.
#[derive(Clone, Debug)]
struct TenantRoom {
    tenant: String,
    max: u64,
    /// What they had when the upload began.
    stored: u64,
}

impl Room {
    fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            of_tenant: None,
        }
    }

    /// The most that a file may have.
    fn bytes(&self) -> u64 {
        let left = |room: &TenantRoom| room.max.saturating_sub(room.stored);
        self.max_bytes
            .min(self.of_tenant.as_ref().map_or(u64::MAX, left))
    }

    /// Refuses a file that has at least so many bytes, if they are too many.
    fn check(&self, bytes: u64) -> Result<()> {
        match &self.of_tenant {
            _ if bytes > self.max_bytes => Err(error::too_large(self.max_bytes)),
            Some(room) if bytes > self.bytes() => {
                Err(error::storage_full(&room.tenant, room.max, room.stored))
            }
            _ => Ok(()),
        }
    }

    /// The answer where a file was not stored.
    fn failed(&self, cause: transfer::Error) -> ApiError {
        match (cause, &self.of_tenant) {
            (transfer::Error::TooLarge(bytes), Some(_)) if bytes < self.max_bytes => {
                self.check(bytes.saturating_add(1)).err()
            }
            (transfer::Error::Store(store::Error::StorageFull { max, stored }), Some(room)) => {
                Some(error::storage_full(&room.tenant, max, stored))
            }
            (cause, _) => Some(failed(cause)),
        }
        .unwrap_or_else(error::internal)
    }
}

/// A form that is being read.
struct Upload<'a> {
    api: &'a Api,
    caller: &'a Caller,
    form: Form<'a>,
    room: Room,
    /// Of the file's bytes. `None` where the request has no `Idempotency-Key`.
    hash: Option<Sha256>,
    asked: Asked,
}

/// What the parts that were read so far ask for.
#[derive(Default)]
struct Asked {
    purpose: Option<Purpose>,
    has_anchor: bool,
    expires_after_seconds: Option<i64>,
    filename: Option<String>,
    /// How the file is compressed. `None` where it is not, or was decompressed as it was received.
    packed: Option<Packing>,
}

/// What a whole form asks for.
struct Request {
    purpose: Purpose,
    filename: String,
    expires_after_seconds: Option<i64>,
    /// How the stored file is compressed, where it must be decompressed yet.
    packed: Option<Packing>,
    /// Of the whole form. Empty for a request without an `Idempotency-Key`.
    fingerprint: String,
}

/// Where the file's bytes go.
enum Sink<'a> {
    /// Into the store. `ingest` is there once the form's file has begun.
    Store {
        attempt: &'a mut Attempt,
        ingest: Option<Box<Ingest>>,
    },
    /// Nowhere: an earlier request with the same `Idempotency-Key` has stored them.
    Nowhere,
}

impl Sink<'_> {
    /// Waits for more of the form. Where other uploads wait for the memory that this file holds, a
    /// client that is too slow is not waited for.
    async fn receive<T>(&mut self, next: impl Future<Output = Result<T>>) -> Result<T> {
        match self {
            Sink::Store {
                ingest: Some(ingest),
                ..
            } => ingest.receive(next).await.map_err(failed)?,
            _ => next.await,
        }
    }

    fn stores(&self) -> bool {
        matches!(self, Sink::Store { .. })
    }

    /// Stores the file without a check of its lines.
    fn leave_unchecked(&mut self) {
        if let Sink::Store {
            ingest: Some(ingest),
            ..
        } = self
        {
            ingest.leave_unchecked();
        }
    }

    /// Stores bytes of the file.
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        if let Sink::Store {
            attempt,
            ingest: Some(ingest),
        } = self
        {
            // This may wait for the memory that the long lines of other files hold.
            let written = attempt.alive_during(ingest.write(bytes)).await?;
            written.map_err(failed)?;
        }
        Ok(())
    }
}

impl Upload<'_> {
    /// Finds out how much the tenant may store. A file that is too large in any case is refused
    /// before any of it is read. `length`: of the whole form, where the request says so.
    async fn find_room(&mut self, length: Option<u64>) -> Result<()> {
        let tenant = &self.caller.tenant;
        let Some(max) = self.api.tenants.of(tenant).max_storage_bytes else {
            return Ok(());
        };
        self.room.of_tenant = Some(TenantRoom {
            tenant: tenant.clone(),
            max,
            stored: self.api.store.stored_bytes(tenant).await?,
        });
        let least = length.unwrap_or(0).saturating_sub(FORM_BYTES_MAX);
        self.room.check(least.max(1))
    }

    /// Stores the file, and returns the answer's JSON.
    async fn store(mut self, attempt: &mut Attempt) -> Result<String> {
        let mut sink = Sink::Store {
            attempt,
            ingest: None,
        };
        self.receive(&mut sink).await?;
        let request = self.request()?;
        let Sink::Store {
            attempt,
            ingest: Some(ingest),
        } = sink
        else {
            return Err(error::missing_parameter("file"));
        };
        attempt.identify(request.fingerprint);
        let ingest = match request.packed {
            None => *ingest,
            Some(packing) => {
                let (api, max_bytes) = (self.api, self.room.bytes());
                let unpack = ingest.unpack(packing, limits(api), max_bytes, &api.uploads);
                let unpacked = attempt.alive_during(unpack).await?;
                unpacked.map_err(|cause| self.room.failed(cause))?
            }
        };
        let created_at = self.api.store.now().await?;
        let retention = self.api.retention.get();
        let default = match request.purpose {
            Purpose::Batch => retention.input_files,
            _ => retention.other_files,
        };
        let kept_for = request
            .expires_after_seconds
            .or_else(|| default.map(expiry::seconds));
        let finish = Finish {
            purpose: request.purpose,
            filename: request.filename,
            created_at,
            expires_at: kept_for.map(|seconds| created_at + seconds * 1000),
        };
        let answer = attempt.claim().map(|claim| Answer {
            claim: claim.clone(),
            body: |file| serde_json::to_string(&FileObject::from(file.clone())),
        });
        let file = attempt.alive_during(ingest.finish(finish, answer)).await?;
        let file = file.map_err(|cause| self.refused(cause, attempt))?;
        log_upload(&file);
        super::json::to_json(&FileObject::from(file))
    }

    /// The answer where a file that was received whole was not published.
    fn refused(&self, cause: transfer::Error, attempt: &Attempt) -> ApiError {
        match cause {
            // The claim to the key had lapsed, and another request has it now.
            transfer::Error::Store(store::Error::Stale(_)) if attempt.claim().is_some() => {
                error::idempotency_running()
            }
            other => self.room.failed(other),
        }
    }

    /// Reads the form to its end.
    async fn receive(&mut self, sink: &mut Sink<'_>) -> Result<()> {
        while let Some(part) = sink.receive(self.form.next()).await? {
            match part.name.as_str() {
                "file" => self.take_file(part, sink).await?,
                "purpose" => {
                    only_once(self.asked.purpose.is_some(), "purpose")?;
                    self.asked.purpose = Some(purpose(&sink.receive(part.text()).await?)?);
                }
                EXPIRY_ANCHOR => {
                    only_once(self.asked.has_anchor, EXPIRY_ANCHOR)?;
                    check_anchor(&sink.receive(part.text()).await?)?;
                    self.asked.has_anchor = true;
                }
                EXPIRY_IN_SECONDS => {
                    only_once(
                        self.asked.expires_after_seconds.is_some(),
                        EXPIRY_IN_SECONDS,
                    )?;
                    let seconds = sink.receive(part.text()).await?;
                    self.asked.expires_after_seconds =
                        Some(integer(EXPIRY_IN_SECONDS, &seconds, &EXPIRY_SECONDS)?);
                }
                // Clients may send parts that only other servers know.
                _ => drop(sink.receive(part.text()).await?),
            }
        }
        Ok(())
    }

    async fn take_file(&mut self, mut part: Part<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let filename = part.filename.take();
        only_once(self.asked.filename.is_some(), "file")?;
        self.asked.filename = Some(self::filename(filename)?);
        let room = &self.room;
        let mut sent = Sent {
            part,
            beginning: None,
            length: 0,
            room,
            hash: self.hash.as_mut(),
        };
        let purpose = self.asked.purpose;
        // A purpose that is still to come may be `batch`.
        let contents = match purpose {
            None | Some(Purpose::Batch) => Contents::Requests,
            Some(_) => Contents::Opaque,
        };
        if let Sink::Store { ingest, .. } = sink {
            let limits = limits(self.api);
            let tenant = &self.caller.tenant;
            let budget = &self.api.uploads;
            let store = &self.api.store;
            let begun = Ingest::begin(store, tenant, limits, contents, budget);
            let max_stored = room.of_tenant.as_ref().map(|room| room.max);
            *ingest = Some(Box::new(begun.within(max_stored)));
        }
        let packing = sink.receive(sent.packing()).await?;
        let is_a_batch = purpose == Some(Purpose::Batch);
        match packing {
            Some(packing) if is_a_batch && packing.is_light() && sink.stores() => {
                return unpack(sent, packing, sink).await;
            }
            Some(_) => sink.leave_unchecked(),
            None => {}
        }
        self.asked.packed = packing;
        while let Some(bytes) = sink.receive(sent.next()).await? {
            sink.write(bytes).await?;
        }
        Ok(())
    }

    /// What the whole form asks for, once it was read to its end.
    fn request(&mut self) -> Result<Request> {
        let asked = std::mem::take(&mut self.asked);
        let filename = asked
            .filename
            .ok_or_else(|| error::missing_parameter("file"))?;
        let purpose = asked
            .purpose
            .ok_or_else(|| error::missing_parameter("purpose"))?;
        match (asked.has_anchor, asked.expires_after_seconds) {
            (true, None) => return Err(error::missing_parameter(EXPIRY_IN_SECONDS)),
            (false, Some(_)) => return Err(error::missing_parameter(EXPIRY_ANCHOR)),
            _ => {}
        }
        let fingerprint = match self.hash.take() {
            None => String::new(),
            Some(hash) => fingerprint(&Identity {
                purpose: purpose.as_str(),
                filename: &filename,
                expires_after_seconds: asked.expires_after_seconds,
                sha256: hex::encode(hash.finalize()),
            })?,
        };
        Ok(Request {
            purpose,
            filename,
            expires_after_seconds: asked.expires_after_seconds,
            packed: asked.packed.filter(|_| purpose == Purpose::Batch),
            fingerprint,
        })
    }
}

/// The bytes of a form's file, as they are sent.
struct Sent<'a, 'f> {
    part: Part<'f>,
    /// The bytes that were read to find out the packing.
    beginning: Option<Bytes>,
    length: u64,
    room: &'a Room,
    hash: Option<&'a mut Sha256>,
}

impl Sent<'_, '_> {
    /// How the file is compressed, if it is. Called before any of its bytes are taken.
    async fn packing(&mut self) -> Result<Option<Packing>> {
        let mut beginning = BytesMut::new();
        while beginning.len() < Packing::SIGNATURE_BYTES {
            let Some(bytes) = self.part.chunk().await? else {
                break;
            };
            beginning.extend_from_slice(&bytes);
        }
        let packing = Packing::of(&beginning);
        self.beginning = Some(beginning.freeze()).filter(|bytes| !bytes.is_empty());
        Ok(packing)
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let next = match self.beginning.take() {
            Some(beginning) => Some(beginning),
            None => self.part.chunk().await?,
        };
        if let Some(bytes) = &next {
            self.length += bytes.len() as u64;
            self.room.check(self.length)?;
            if let Some(hash) = &mut self.hash {
                hash.update(bytes);
            }
        }
        Ok(next)
    }
}

/// Stores the content of a compressed file as its bytes are received.
async fn unpack(sent: Sent<'_, '_>, packing: Packing, sink: &mut Sink<'_>) -> Result<()> {
    let room = sent.room;
    let sent = stream::try_unfold(sent, |mut sent| async {
        Ok(sent.next().await?.map(|bytes| (bytes, sent)))
    });
    let mut unpacked = Unpacked::<ApiError>::new(packing, sent);
    let mut length = 0;
    while let Some(bytes) = sink.receive(content(&mut unpacked)).await? {
        length += bytes.len() as u64;
        room.check(length)?;
        sink.write(bytes).await?;
    }
    Ok(())
}

/// The next bytes of a compressed file's content.
async fn content(unpacked: &mut Unpacked<'_, ApiError>) -> Result<Option<Bytes>> {
    unpacked.next().await.map_err(|cause| match cause {
        NoContent::Source(error) => error,
        NoContent::Unreadable(why) => error::bad_request(why.to_string()),
    })
}

/// Two uploads are the same when all of these are equal.
#[derive(Serialize)]
struct Identity<'a> {
    purpose: &'a str,
    filename: &'a str,
    expires_after_seconds: Option<i64>,
    sha256: String,
}

fn only_once(again: bool, name: &str) -> Result<()> {
    if again {
        let message = format!("The form has more than one part named '{name}'.");
        return Err(error::invalid_value_because(name, message));
    }
    Ok(())
}

/// The file's name, from the one that the form gives.
fn filename(given: Option<String>) -> Result<String> {
    let name = given.filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| UNNAMED.to_owned());
    let chars = name.chars().count();
    if chars > FILENAME_CHARS_MAX {
        return Err(error::string_above("file", FILENAME_CHARS_MAX, chars));
    }
    Ok(storable(name))
}

fn purpose(name: &str) -> Result<Purpose> {
    let known = Purpose::UPLOADABLE.into_iter().find(|p| p.as_str() == name);
    known.ok_or_else(|| {
        error::invalid_value("purpose", name, &Purpose::UPLOADABLE.map(Purpose::as_str))
    })
}

fn check_anchor(anchor: &str) -> Result<()> {
    if anchor == ANCHOR {
        Ok(())
    } else {
        Err(error::invalid_value(EXPIRY_ANCHOR, anchor, &[ANCHOR]))
    }
}

/// The answer where a file was not stored.
fn failed(cause: transfer::Error) -> ApiError {
    match cause {
        transfer::Error::NotJsonl(_) | transfer::Error::Unreadable(_) => {
            error::bad_request(cause.to_string())
        }
        transfer::Error::TooLarge(max_bytes) => error::too_large(max_bytes),
        transfer::Error::Store(cause) => cause.into(),
        transfer::Error::TooSlow => error::too_slow(),
        transfer::Error::Io(_) => {
            tracing::error!(error = %cause, "an upload failed");
            error::internal()
        }
    }
}

fn log_upload(file: &StoredFile) {
    tracing::info!(
        file.id = file.id,
        file.bytes = file.bytes,
        file.purpose = file.purpose,
        tenant = file.tenant,
        "a file was uploaded"
    );
}

#[cfg(test)]
mod tests;
