//! JSON bodies. They are read field by field, so that each mistake gets the error that OpenAI
//! gives.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use http_body_util::BodyExt;
use serde::Serialize;
use serde_json::{Map, Value};

use super::drain::drain;
use super::error::{self, ApiError, Result};

/// The largest JSON body, in bytes. A batch with the most metadata, all of it written in escapes,
/// has less than half of that. The limit is low because a parsed body takes many times its bytes.
const BODY_BYTES_MAX: usize = 256 << 10;

/// JSON for an answer that is to be remembered as well as sent.
///
/// # Errors
/// When the value cannot be written as JSON, which is a fault of ours.
pub fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| {
        tracing::error!(%error, "an answer could not be written as JSON");
        error::internal()
    })
}

/// A JSON object whose fields are taken one by one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object {
    /// The field that has the object, with a dot behind it. Empty for a whole body.
    prefix: String,
    fields: Map<String, Value>,
}

impl Object {
    /// The name by which errors call a field.
    #[must_use]
    pub fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    fn required(&mut self, field: &str) -> Result<Value> {
        self.fields
            .remove(field)
            .ok_or_else(|| error::missing_parameter(&self.name(field)))
    }

    /// A field's value, unless it is missing or null.
    fn optional(&mut self, field: &str) -> Option<Value> {
        self.fields.remove(field).filter(|value| !value.is_null())
    }

    /// # Errors
    /// When the field is missing or no string.
    pub fn string(&mut self, field: &str) -> Result<String> {
        let value = self.required(field)?;
        string(&self.name(field), value)
    }

    /// # Errors
    /// When the field is neither missing nor null nor a string.
    pub fn optional_string(&mut self, field: &str) -> Result<Option<String>> {
        let value = self.optional(field);
        value
            .map(|value| string(&self.name(field), value))
            .transpose()
    }

    /// # Errors
    /// When the field is neither missing nor null nor a boolean.
    pub fn optional_boolean(&mut self, field: &str) -> Result<Option<bool>> {
        match self.optional(field) {
            None => Ok(None),
            Some(Value::Bool(boolean)) => Ok(Some(boolean)),
            Some(other) => {
                let name = self.name(field);
                Err(error::invalid_type(&name, "a boolean", type_of(&other)))
            }
        }
    }

    /// # Errors
    /// When the field is missing, no whole number, or out of bounds.
    pub fn integer(&mut self, field: &str, bounds: std::ops::RangeInclusive<i64>) -> Result<i64> {
        let value = self.required(field)?;
        integer(&self.name(field), &value, bounds)
    }

    /// # Errors
    /// When the field is neither missing nor null nor a whole number within the bounds.
    pub fn optional_integer(
        &mut self,
        field: &str,
        bounds: std::ops::RangeInclusive<i64>,
    ) -> Result<Option<i64>> {
        let value = self.optional(field);
        value
            .map(|value| integer(&self.name(field), &value, bounds))
            .transpose()
    }

    /// # Errors
    /// When the field is neither missing nor null nor an object.
    pub fn optional_object(&mut self, field: &str) -> Result<Option<Object>> {
        let name = self.name(field);
        match self.optional(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Object {
                prefix: format!("{name}."),
                fields,
            })),
            Some(other) => Err(error::invalid_type(&name, "an object", type_of(&other))),
        }
    }

    /// All fields that were not taken yet. Each must be a string.
    ///
    /// # Errors
    /// When one is not.
    pub fn into_strings(self) -> Result<Vec<(String, String)>> {
        let prefix = self.prefix;
        self.fields
            .into_iter()
            .map(|(field, value)| {
                let value = string(&format!("{prefix}{field}"), value)?;
                Ok((field, value))
            })
            .collect()
    }

    /// Called when all known fields are taken: no field may be left.
    ///
    /// # Errors
    /// When a field is left that is not null.
    pub fn finish(self) -> Result<()> {
        let left = self.fields.iter().find(|(_, value)| !value.is_null());
        match left {
            Some((field, _)) => Err(error::unknown_parameter(&self.name(field))),
            None => Ok(()),
        }
    }

    fn parse(body: &[u8]) -> Result<Self> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(fields.into()),
            Ok(other) => Err(error::bad_request(format!(
                "Invalid body: expected an object, but got {} instead.",
                type_of(&other)
            ))),
            Err(cause) => Err(error::bad_request(format!(
                "We could not parse the JSON body of your request. (The body must be one JSON \
                 object, and it is not from line {}, column {} on.)",
                cause.line(),
                cause.column()
            ))),
        }
    }
}

impl From<Map<String, Value>> for Object {
    fn from(fields: Map<String, Value>) -> Self {
        Object {
            prefix: String::new(),
            fields,
        }
    }
}

impl<S: Send + Sync> FromRequest<S> for Object {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        Object::parse(&read(request.into_body()).await?)
    }
}

/// Reads a whole body, if it is not too large.
async fn read(mut body: Body) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|cause| error::broken_body(&cause))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if bytes.len() + data.len() > BODY_BYTES_MAX {
            drain(body).await;
            return Err(error::too_large(BODY_BYTES_MAX as u64));
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}

fn string(name: &str, value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(error::invalid_type(name, "a string", type_of(&other))),
    }
}

fn integer(name: &str, value: &Value, bounds: std::ops::RangeInclusive<i64>) -> Result<i64> {
    let Value::Number(number) = value else {
        return Err(error::invalid_type(name, "an integer", type_of(value)));
    };
    match number.as_i64() {
        Some(integer) if integer < *bounds.start() => {
            Err(error::integer_below(name, *bounds.start(), integer))
        }
        Some(integer) if integer > *bounds.end() => {
            Err(error::integer_above(name, *bounds.end(), integer))
        }
        Some(integer) => Ok(integer),
        None if number.is_u64() => Err(error::integer_above(name, *bounds.end(), number)),
        None => Err(error::invalid_type(name, "an integer", type_of(value))),
    }
}

/// What a value is, with its article, as OpenAI's messages say it.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(body: &str) -> Object {
        Object::parse(body.as_bytes()).unwrap()
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        for body in ["", "{", "[1]", "null", "\"text\"", "{} {}", "\u{feff}{}"] {
            let error = Object::parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.status, 400, "{body:?}");
            assert_eq!(error.code, None, "{body:?}");
        }
        let nested = "[".repeat(200_000);
        assert!(Object::parse(nested.as_bytes()).is_err());
    }

    #[test]
    fn every_wrong_type_is_named() {
        for (value, got) in [
            ("null", "null"),
            ("true", "a boolean"),
            ("1", "an integer"),
            ("1.5", "a decimal number"),
            ("[]", "an array"),
            ("{}", "an object"),
        ] {
            let error = object(&format!("{{\"a\":{value}}}"))
                .string("a")
                .unwrap_err();
            assert_eq!(
                error.message,
                format!("Invalid type for 'a': expected a string, but got {got} instead.")
            );
        }
    }

    #[test]
    fn fields_within_objects_are_called_by_their_path() {
        let mut body = object(r#"{"expires_after":{"seconds":1e3}}"#);
        let mut inner = body.optional_object("expires_after").unwrap().unwrap();
        let error = inner.integer("seconds", 1..=2).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("expires_after.seconds"));
        assert_eq!(error.code, Some("invalid_type"));
    }

    #[test]
    fn whole_numbers_of_any_size_are_judged() {
        for (value, code) in [
            ("3", "integer_above_max_value"),
            ("18446744073709551615", "integer_above_max_value"),
            ("0", "integer_below_min_value"),
            ("\"1\"", "invalid_type"),
        ] {
            let error = object(&format!("{{\"n\":{value}}}"))
                .integer("n", 1..=2)
                .unwrap_err();
            assert_eq!(error.code, Some(code), "{value}");
        }
        assert_eq!(object(r#"{"n":2}"#).integer("n", 1..=2), Ok(2));
    }

    #[test]
    fn what_nobody_knows_is_refused_unless_it_is_null() {
        assert_eq!(object(r#"{"x":null}"#).finish(), Ok(()));
        let error = object(r#"{"x":1}"#).finish().unwrap_err();
        assert_eq!(error.code, Some("unknown_parameter"));
        assert_eq!(error.param.as_deref(), Some("x"));
    }
}
