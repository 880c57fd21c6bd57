//! Lists: what a client asks for (`limit`, `order`, `after`), and the envelope it gets.

use std::ops::RangeInclusive;
use std::time::Duration;

use axum::extract::{FromRequestParts, Query as RawQuery};
use axum::http::request::Parts;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{self, ApiError, Result};
use super::integer::integer;
use crate::store::Order;
use crate::store::storable;

/// A URL's query, as text. Values are read one by one, so that errors can name them. Unknown names
/// are ignored.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// A value, unless it is missing or empty.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.last(name).filter(|value| !value.is_empty())
    }

    /// All values of a list, written as `name=a&name=b` or as `name[]=a&name[]=b`. `None`: there is
    /// no list.
    #[must_use]
    pub fn list(&self, name: &str) -> Option<Vec<String>> {
        let is_of_list = |given: &str| given.strip_suffix("[]").unwrap_or(given) == name;
        let values = self.0.iter().filter(|(given, _)| is_of_list(given));
        let values: Vec<String> = values.map(|(_, value)| value.clone()).collect();
        (!values.is_empty()).then_some(values)
    }

    /// Whether a value is given and empty.
    #[must_use]
    pub fn is_empty(&self, name: &str) -> bool {
        self.last(name) == Some("")
    }

    fn last(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().rev();
        let found = values.find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }

    /// How many items a page may have.
    ///
    /// # Errors
    /// When it is no whole number, or out of bounds.
    pub fn limit(&self, bounds: RangeInclusive<i64>, default: i64) -> Result<i64> {
        match self.last("limit") {
            Some(given) => integer("limit", given, &bounds),
            None => Ok(default),
        }
    }

    /// How long something may take, in whole seconds. `None`: nothing is said.
    ///
    /// # Errors
    /// When it is no whole number, or out of bounds.
    pub fn timeout(&self, bounds: RangeInclusive<i64>) -> Result<Option<Duration>> {
        let seconds = self.text("timeout");
        let seconds = seconds.map(|given| integer("timeout", given, &bounds));
        let seconds = seconds.transpose()?;
        Ok(seconds.map(|seconds| Duration::from_secs(seconds.unsigned_abs())))
    }

    /// The direction by creation time: the newest first, unless the client asks otherwise.
    ///
    /// # Errors
    /// When it is neither `asc` nor `desc`.
    pub fn order(&self) -> Result<Order> {
        match self.text("order") {
            None | Some("desc") => Ok(Order::Descending),
            Some("asc") => Ok(Order::Ascending),
            Some(other) => Err(error::invalid_value("order", other, &["asc", "desc"])),
        }
    }

    /// The id behind which the page begins.
    #[must_use]
    pub fn after(&self) -> Option<&str> {
        self.text("after")
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let RawQuery(pairs) = RawQuery::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|_| error::bad_request("The query of the URL could not be read."))?;
        let pairs = pairs.into_iter();
        Ok(Query(
            pairs.map(|(name, value)| (name, storable(value))).collect(),
        ))
    }
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    /// Always `list`.
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<T>,
    /// The id of the page's first item; null on an empty page.
    #[schema(required)]
    pub first_id: Option<String>,
    /// The id of the page's last item, which is the `after` of the next page.
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether the list goes on behind this page.
    pub has_more: bool,
}

impl<T> List<T> {
    /// The envelope of a page. `id`: gives an item's id.
    #[must_use]
    pub fn new(data: Vec<T>, has_more: bool, id: impl Fn(&T) -> &str) -> Self {
        Self {
            object: "list",
            first_id: data.first().map(|item| id(item).to_owned()),
            last_id: data.last().map(|item| id(item).to_owned()),
            data,
            has_more,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Query {
        let pairs = pairs.iter();
        Query(
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn a_limit_that_is_left_out_is_the_default() {
        assert_eq!(query(&[]).limit(1..=100, 20), Ok(20));
        assert_eq!(query(&[("limit", "7")]).limit(1..=100, 20), Ok(7));
        assert!(query(&[("limit", "")]).limit(1..=100, 20).is_err());
    }

    #[test]
    fn lists_come_in_either_spelling_and_of_other_values_the_last_counts() {
        let pairs = [("a", "1"), ("a[]", "2"), ("ab", "3"), ("a", "4")];
        assert_eq!(query(&pairs).list("a").unwrap(), ["1", "2", "4"]);
        assert_eq!(query(&pairs).list("b"), None);
        assert_eq!(query(&pairs).text("a"), Some("4"));
    }

    #[test]
    fn lists_go_either_way_by_time() {
        assert_eq!(query(&[]).order(), Ok(Order::Descending));
        assert_eq!(query(&[("order", "asc")]).order(), Ok(Order::Ascending));
        let error = query(&[("order", "up")]).order().unwrap_err();
        assert_eq!(error.code, Some("invalid_value"));
        assert_eq!(
            error.message,
            "Invalid value: 'up'. Supported values are: 'asc' and 'desc'."
        );
    }
}
