//! What `POST /v1/batches` asks for, and the rules for it.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Deprecated;
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, Schema, Type};

use super::auth::Caller;
use super::error::{self, ApiError, Result};
use super::expiry::{self, ANCHOR, expires_after};
use super::json::Object;
use super::state::Api;
use crate::domain::batch::{PRIORITIES, window_ms};
use crate::domain::endpoint::{ENDPOINTS, Endpoints};
use crate::domain::id;
use crate::domain::reuse::{Choice, Mode};
use crate::store::{NewBatch, Steering};

/// The key of the metadata that names the task. No other key of the metadata says anything to the
/// server.
const TASK: &str = "nightshift.task";
const METADATA_PAIRS_MAX: usize = 16;
const METADATA_KEY_CHARS_MAX: usize = 64;
const METADATA_VALUE_CHARS_MAX: usize = 512;
/// The last second of the year 9999.
const TIME_MAX: i64 = 253_402_300_799;
/// How long a file's id may be. Ids made here are shorter.
const FILE_ID_CHARS_MAX: usize = 512;

/// A batch to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchRequest {
    /// The id of a file that was uploaded for the purpose `batch`.
    pub input_file_id: String,
    /// Where every line of the file is to be sent.
    #[schema(schema_with = endpoint_schema)]
    pub endpoint: String,
    /// How long the batch may take: a number and a unit, from `1m` to `30d`.
    #[schema(example = "24h")]
    pub completion_window: String,
    /// Up to 16 pairs that are given back with the batch: keys of up to 64 characters, values of
    /// up to 512.
    pub metadata: Option<BTreeMap<String, String>>,
    /// What OpenAI does not have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nightshift: Option<Extension>,
    /// How long the output and error files are kept: 30 days, unless said otherwise here or the
    /// server is configured otherwise.
    pub output_expires_after: Option<OutputExpiresAfter>,
}

/// What a batch asks for that OpenAI does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Extension {
    /// The task of all lines: a line may leave `model` out then, and one that names a model must
    /// name one of the task's. The pair `nightshift.task` of the metadata says the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Which lines may be answered by the answer to an equal line, without a call: `off`,
    /// `embeddings`, `deterministic` or `all`, as far as the server allows it, or `refresh`: as the
    /// server has it, with answers that are asked for anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse: Option<String>,
    /// Whether each output line says how it was answered, under a key `nightshift`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<bool>,
    /// From -100 to 100, and no higher than the tenant may: within a tenant, batches of a higher
    /// priority go first. 0, unless said otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = -100, maximum = 100)]
    pub priority: Option<i64>,
    /// No line is sent before that time, in Unix seconds. The window goes on meanwhile, so the time
    /// must be before its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<i64>,
    /// No line is sent until the batch is resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

/// How long a batch's files are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct OutputExpiresAfter {
    /// Always `created_at`: counted from when the file is made, not the batch.
    #[schema(example = "created_at")]
    pub anchor: &'static str,
    /// From an hour to 30 days.
    #[schema(minimum = 3600, maximum = 2_592_000)]
    pub seconds: i64,
}

/// Every endpoint as a value of its own, so that the document can mark one as deprecated.
fn endpoint_schema() -> Schema {
    let any = AnyOfBuilder::new()
        .description(Some("Where every line of the file is to be sent."))
        .examples(["/v1/chat/completions"]);
    let endpoints = ENDPOINTS.iter().map(|endpoint| {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some([endpoint.path]))
            .deprecated(endpoint.deprecated.then_some(Deprecated::True))
    });
    let added = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("An endpoint that the server's operator has added."))
        .pattern(Some("^/v1/"));
    let all = endpoints.chain([added]);
    Schema::AnyOf(all.fold(any, AnyOfBuilder::item).build())
}

impl BatchRequest {
    /// `reuse`: which lines may be answered by answers to others here.
    fn read(mut body: Object, endpoints: Endpoints, reuse: Mode) -> Result<Self> {
        let request = Self {
            input_file_id: file_id(body.string("input_file_id")?)?,
            endpoint: endpoint(body.string("endpoint")?, endpoints)?,
            completion_window: window(body.string("completion_window")?)?,
            metadata: body
                .optional_object("metadata")?
                .map(metadata)
                .transpose()?,
            nightshift: body
                .optional_object("nightshift")?
                .map(|given| Extension::read(given, reuse))
                .transpose()?,
            output_expires_after: expires_after(&mut body, "output_expires_after")?.map(
                |seconds| OutputExpiresAfter {
                    anchor: ANCHOR,
                    seconds,
                },
            ),
        };
        body.finish()?;
        Ok(request)
    }

    /// The batch that a caller creates now. Where the request does not say: `kept` is how long its
    /// output is kept, `None` for good, and `details` whether its output lines say how they were
    /// answered. `max_priority`: of the caller's tenant.
    ///
    /// # Errors
    /// When it asks for a priority that the tenant may not have, or for a begin behind the window's
    /// end. When the metadata cannot be written, which is a fault of ours.
    pub fn into_batch(
        self,
        caller: Caller,
        now_ms: i64,
        kept: Option<Duration>,
        details: bool,
        max_priority: i64,
    ) -> Result<NewBatch> {
        let expires_at = window_ms(&self.completion_window).map(|window| now_ms + window);
        let extension = self.nightshift.unwrap_or_default();
        let steering = extension.steering(expires_at, max_priority)?;
        let metadata = self.metadata.as_ref().map(super::json::to_json);
        let of_metadata = self.metadata.as_ref().and_then(|pairs| pairs.get(TASK));
        Ok(NewBatch {
            id: id::batch(),
            tenant: caller.tenant,
            key_id: caller.key_id,
            expires_at,
            output_expires_seconds: self
                .output_expires_after
                .map(|expiry| expiry.seconds)
                .or_else(|| kept.map(expiry::seconds))
                .unwrap_or(NewBatch::KEPT_FOR_GOOD),
            endpoint: self.endpoint,
            input_file_id: self.input_file_id,
            task: extension.task.or_else(|| of_metadata.cloned()),
            reuse: extension.reuse.as_deref().and_then(Choice::parse),
            details: extension.details.unwrap_or(details),
            completion_window: self.completion_window,
            metadata: metadata.transpose()?,
            created_at: now_ms,
            steering,
        })
    }
}

impl Extension {
    fn read(mut given: Object, allowed: Mode) -> Result<Self> {
        let task = given.optional_string("task")?;
        let reuse = given.optional_string("reuse")?;
        if let Some(reuse) = &reuse {
            let choices = Choice::allowed(allowed);
            if !choices.contains(&reuse.as_str()) {
                return Err(error::invalid_value(&given.name("reuse"), reuse, &choices));
            }
        }
        let details = given.optional_boolean("details")?;
        let extension = Self {
            task,
            reuse,
            details,
            priority: given.optional_integer("priority", PRIORITIES)?,
            not_before: given.optional_integer("not_before", 0..=TIME_MAX)?,
            paused: given.optional_boolean("paused")?,
        };
        given.finish()?;
        Ok(extension)
    }

    fn steering(&self, expires_at: Option<i64>, max_priority: i64) -> Result<Steering> {
        let priority = self.priority.unwrap_or(0);
        if priority > max_priority {
            return Err(error::invalid_value_because(
                "nightshift.priority",
                format!(
                    "Invalid 'nightshift.priority': {priority} is above {max_priority}, the highest \
                     that your organization may use."
                ),
            ));
        }
        let not_before = self.not_before.map(|seconds| seconds * 1_000);
        if let (Some(begin), Some(end)) = (not_before, expires_at)
            && begin >= end
        {
            return Err(error::invalid_value_because(
                "nightshift.not_before",
                "Invalid 'nightshift.not_before': the completion window ends before that time.",
            ));
        }
        Ok(Steering {
            priority,
            not_before,
            is_paused: self.paused.unwrap_or(false),
        })
    }
}

impl FromRequest<Api> for BatchRequest {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self> {
        let body = Object::from_request(request, api).await?;
        BatchRequest::read(body, api.endpoints, api.reuse.get().mode)
    }
}

/// Checks that a file's id can be stored. The file need not exist: without it the batch fails
/// validation, as at OpenAI.
fn file_id(given: String) -> Result<String> {
    let chars = given.chars().count();
    if chars > FILE_ID_CHARS_MAX {
        return Err(error::string_above(
            "input_file_id",
            FILE_ID_CHARS_MAX,
            chars,
        ));
    }
    if given.contains('\0') {
        return Err(error::invalid_value_because(
            "input_file_id",
            "Invalid 'input_file_id': a file's id does not contain NUL characters.",
        ));
    }
    Ok(given)
}

fn endpoint(given: String, endpoints: Endpoints) -> Result<String> {
    if let Some(endpoint) = endpoints.find(&given) {
        return Ok(endpoint.path.to_owned());
    }
    let supported: Vec<&str> = endpoints.all().map(|endpoint| endpoint.path).collect();
    Err(error::invalid_value("endpoint", &given, &supported))
}

fn window(given: String) -> Result<String> {
    if window_ms(&given).is_some() {
        return Ok(given);
    }
    Err(error::invalid_value_because(
        "completion_window",
        format!(
            "Invalid value: '{}'. Supported values are: '24h', and any whole number of minutes, \
             hours or days from '1m' to '30d'.",
            error::shown(&given)
        ),
    ))
}

fn metadata(given: Object) -> Result<BTreeMap<String, String>> {
    let pairs = given.into_strings()?;
    if pairs.len() > METADATA_PAIRS_MAX {
        return Err(error::too_many_properties(
            "metadata",
            METADATA_PAIRS_MAX,
            pairs.len(),
        ));
    }
    for (key, value) in &pairs {
        let chars = key.chars().count();
        if chars > METADATA_KEY_CHARS_MAX {
            return Err(error::property_name_above(
                "metadata",
                METADATA_KEY_CHARS_MAX,
                chars,
            ));
        }
        let chars = value.chars().count();
        if chars > METADATA_VALUE_CHARS_MAX {
            return Err(error::string_above(
                &format!("metadata.{key}"),
                METADATA_VALUE_CHARS_MAX,
                chars,
            ));
        }
    }
    Ok(pairs.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::scope::Scopes;

    fn caller() -> Caller {
        Caller {
            tenant: "t".to_owned(),
            key_id: Some("key_1".to_owned()),
            scopes: Scopes::API,
        }
    }

    /// A good request, with one field changed; `None` removes it.
    fn read(field: &str, value: Option<Value>) -> Result<BatchRequest> {
        let mut body = json!({
            "input_file_id": "file-abc",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        });
        let fields = body.as_object_mut().unwrap();
        match value {
            Some(value) => fields.insert(field.to_owned(), value),
            None => fields.remove(field),
        };
        let body = Object::from(body.as_object().unwrap().clone());
        BatchRequest::read(body, Endpoints::USUAL, Mode::Embeddings)
    }

    #[test]
    fn a_request_may_leave_out_or_null_what_is_optional() {
        for field in ["metadata", "output_expires_after", "nobody_knows_this"] {
            let request = read(field, Some(Value::Null)).unwrap();
            assert_eq!(request.metadata, None);
            let kept = Some(Duration::from_hours(2));
            let batch = request
                .into_batch(caller(), 1_000, kept, false, 100)
                .unwrap();
            assert_eq!(batch.expires_at, Some(1_000 + 86_400_000));
            assert_eq!(batch.output_expires_seconds, 7_200);
            assert_eq!(batch.metadata, None);
        }
    }

    #[test]
    fn every_rule_is_named_by_code_and_param() {
        let many: serde_json::Map<String, Value> =
            (0..17).map(|n| (n.to_string(), json!("v"))).collect();
        let long_key = "k".repeat(65);
        let expiry =
            |anchor: Value, seconds: Value| Some(json!({"anchor": anchor, "seconds": seconds}));
        for (field, value, code, param) in [
            (
                "input_file_id",
                None,
                "missing_required_parameter",
                "input_file_id",
            ),
            (
                "input_file_id",
                Some(json!(1)),
                "invalid_type",
                "input_file_id",
            ),
            (
                "input_file_id",
                Some(json!("a\0")),
                "invalid_value",
                "input_file_id",
            ),
            ("endpoint", None, "missing_required_parameter", "endpoint"),
            (
                "endpoint",
                Some(json!("/v1/x")),
                "invalid_value",
                "endpoint",
            ),
            ("endpoint", Some(Value::Null), "invalid_type", "endpoint"),
            (
                "completion_window",
                None,
                "missing_required_parameter",
                "completion_window",
            ),
            (
                "completion_window",
                Some(json!("48")),
                "invalid_value",
                "completion_window",
            ),
            (
                "completion_window",
                Some(json!(24)),
                "invalid_type",
                "completion_window",
            ),
            ("metadata", Some(json!("x")), "invalid_type", "metadata"),
            (
                "metadata",
                Some(json!({"tags": ["a"]})),
                "invalid_type",
                "metadata.tags",
            ),
            (
                "metadata",
                Some(json!({"n": null})),
                "invalid_type",
                "metadata.n",
            ),
            (
                "metadata",
                Some(Value::Object(many)),
                "object_above_max_properties",
                "metadata",
            ),
            (
                "metadata",
                Some(json!({ long_key: "v" })),
                "property_name_above_max_length",
                "metadata",
            ),
            (
                "metadata",
                Some(json!({"k": "v".repeat(513)})),
                "string_above_max_length",
                "metadata.k",
            ),
            (
                "output_expires_after",
                Some(json!({"seconds": 3600})),
                "missing_required_parameter",
                "output_expires_after.anchor",
            ),
            (
                "output_expires_after",
                expiry(json!("now"), json!(3600)),
                "invalid_value",
                "output_expires_after.anchor",
            ),
            (
                "output_expires_after",
                expiry(json!("created_at"), json!(3599)),
                "integer_below_min_value",
                "output_expires_after.seconds",
            ),
            (
                "output_expires_after",
                expiry(json!("created_at"), json!(2_592_001)),
                "integer_above_max_value",
                "output_expires_after.seconds",
            ),
            ("priority", Some(json!(1)), "unknown_parameter", "priority"),
        ] {
            let error = read(field, value.clone()).unwrap_err();
            assert_eq!(error.status, 400, "{field}: {value:?}");
            assert_eq!(error.code, Some(code), "{field}: {value:?}");
            assert_eq!(error.param.as_deref(), Some(param), "{field}: {value:?}");
        }
    }

    #[test]
    fn a_batch_names_its_task_in_either_of_two_places() {
        let task = |field: &str, value: Value| {
            let request = read(field, Some(value)).unwrap();
            request
                .into_batch(caller(), 1_000, None, false, 100)
                .unwrap()
                .task
        };
        let named = Some("summary".to_owned());
        assert_eq!(task("nightshift", json!({"task": "summary"})), named);
        assert_eq!(
            task("metadata", json!({"nightshift.task": "summary"})),
            named
        );
        assert_eq!(task("metadata", json!({"task": "summary"})), None);
        assert_eq!(task("nightshift", json!({"task": null})), None);
        for (value, code, param) in [
            (json!({"task": 1}), "invalid_type", "nightshift.task"),
            (json!({"tusk": "a"}), "unknown_parameter", "nightshift.tusk"),
            (json!("summary"), "invalid_type", "nightshift"),
        ] {
            let error = read("nightshift", Some(value)).unwrap_err();
            assert_eq!(error.code, Some(code));
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }

    #[test]
    fn a_batch_chooses_of_reuse_what_the_operator_allows() {
        let chosen = |value: Value| {
            let request = read("nightshift", Some(value))?;
            let batch = request.into_batch(caller(), 1_000, None, false, 100)?;
            Ok::<_, ApiError>((batch.reuse, batch.details))
        };
        let none = (None, false);
        assert_eq!(
            chosen(json!({"reuse": null, "details": null})).unwrap(),
            none
        );
        for (reuse, expected) in [
            ("off", Choice::Mode(Mode::Off)),
            ("embeddings", Choice::Mode(Mode::Embeddings)),
            ("refresh", Choice::Refresh),
        ] {
            let given = json!({"reuse": reuse, "details": true});
            assert_eq!(chosen(given).unwrap(), (Some(expected), true));
        }
        let error = chosen(json!({"reuse": "all"})).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("nightshift.reuse"));
        assert_eq!(
            error.message,
            "Invalid value: 'all'. Supported values are: 'off', 'embeddings', and 'refresh'."
        );
        for (value, param) in [
            (json!({"reuse": 1}), "nightshift.reuse"),
            (json!({"details": "yes"}), "nightshift.details"),
        ] {
            let error = chosen(value).unwrap_err();
            assert_eq!(error.code, Some("invalid_type"));
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }

    #[test]
    fn the_endpoints_error_is_openais() {
        let error = read("endpoint", Some(json!("/v1/invalid/endpoint"))).unwrap_err();
        assert_eq!(
            error.message,
            "Invalid value: '/v1/invalid/endpoint'. Supported values are: '/v1/responses', \
             '/v1/chat/completions', '/v1/embeddings', '/v1/completions', '/v1/moderations', \
             '/v1/images/generations', '/v1/images/edits', '/v1/videos', and '/v1/messages'."
        );
    }

    #[test]
    fn the_largest_metadata_is_kept() {
        let pairs: BTreeMap<String, String> = (0..16)
            .map(|n| (format!("{n:064}"), "é".repeat(512)))
            .collect();
        let request = read("metadata", Some(json!(pairs))).unwrap();
        assert_eq!(request.metadata, Some(pairs));
    }
}
