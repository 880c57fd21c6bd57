//! OpenAI's API, and the many servers that speak it.

mod streamed;

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, InvalidHeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{Folded, Provider};
use crate::upstream::ModelInfo;

#[derive(Debug)]
pub(super) struct OpenAi;

#[derive(Deserialize)]
struct List {
    data: Vec<Model>,
}

/// Servers leave out all but the id, or write it as they like.
#[derive(Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    created: serde_json::Value,
    #[serde(default)]
    owned_by: serde_json::Value,
    #[serde(default)]
    shutdown_date: serde_json::Value,
}

impl Provider for OpenAi {
    fn url(&self, base: &Url, path: &str) -> Url {
        behind(base, path.strip_prefix("/v1").unwrap_or(path))
    }

    fn models_url(&self, base: &Url) -> Url {
        behind(base, "/models")
    }

    fn authorize(
        &self,
        key: &SecretString,
        headers: &mut HeaderMap,
    ) -> Result<(), InvalidHeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        Ok(())
    }

    fn models(&self, body: &[u8]) -> Option<Vec<ModelInfo>> {
        let list: List = serde_json::from_slice(body).ok()?;
        let models = list.data.into_iter().map(|model| ModelInfo {
            id: model.id,
            created: model.created.as_i64().unwrap_or(0),
            owned_by: model.owned_by.as_str().unwrap_or_default().to_owned(),
            shutdown_date: model.shutdown_date.as_str().map(str::to_owned),
        });
        Some(models.collect())
    }

    fn fold(&self, body: &Bytes) -> Folded {
        streamed::fold(body)
    }

    fn request_id<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        let id = headers
            .get("x-request-id")
            .or_else(|| headers.get("request-id"))?;
        id.to_str().ok().filter(|id| !id.is_empty())
    }
}

/// The base with `path` put behind its own; its query (an API version, say) stays.
fn behind(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lines_path_without_its_v1_goes_behind_the_base() {
        let cases = [
            ("http://h:8000/v1", "http://h:8000/v1/chat/completions"),
            (
                "https://h/api/openai/",
                "https://h/api/openai/chat/completions",
            ),
            (
                "https://h/x?api-version=1",
                "https://h/x/chat/completions?api-version=1",
            ),
        ];
        for (base, expected) in cases {
            let base = Url::parse(base).expect("a URL");
            assert_eq!(OpenAi.url(&base, "/v1/chat/completions").as_str(), expected);
        }
    }

    #[test]
    fn a_list_of_models_is_read_leniently() {
        let body = br#"{"object":"list","data":[{"id":"a","created":17,"owned_by":"me","x":{},
            "shutdown_date":"2027-01-31"},
            {"id":"b","created":null},{"id":"c","created":"2024-01-01"}]}"#;
        let models = OpenAi.models(body).expect("a list");
        let ids: Vec<_> = models.iter().map(|m| (m.id.as_str(), m.created)).collect();
        assert_eq!(ids, [("a", 17), ("b", 0), ("c", 0)]);
        assert_eq!(models[0].owned_by, "me");
        assert_eq!(models[0].shutdown_date.as_deref(), Some("2027-01-31"));
        assert_eq!(models[1].shutdown_date, None);
        for junk in ["", "<html>", "[]", "{}", r#"{"data":[{"name":"a"}]}"#] {
            assert!(OpenAi.models(junk.as_bytes()).is_none(), "{junk}");
        }
    }

    #[test]
    fn the_servers_request_id_is_found_under_both_names() {
        let mut headers = HeaderMap::new();
        assert_eq!(OpenAi.request_id(&headers), None);
        headers.insert("request-id", HeaderValue::from_static("req_1"));
        assert_eq!(OpenAi.request_id(&headers), Some("req_1"));
        headers.insert("x-request-id", HeaderValue::from_static("req_2"));
        assert_eq!(OpenAi.request_id(&headers), Some("req_2"));
    }

    #[test]
    fn the_key_is_sent_as_a_bearer_token_and_never_shown() {
        let mut headers = HeaderMap::new();
        let key = SecretString::from("sk-1");
        OpenAi.authorize(&key, &mut headers).expect("a header");
        assert_eq!(headers[AUTHORIZATION], "Bearer sk-1");
        assert!(!format!("{headers:?}").contains("sk-1"));
        let bad = SecretString::from("sk\n1");
        assert!(OpenAi.authorize(&bad, &mut headers).is_err());
    }
}
