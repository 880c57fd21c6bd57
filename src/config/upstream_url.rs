//! The URLs of an upstream.

use std::net::IpAddr;

use reqwest::Url;

use super::reader::Item;
use super::secret;
use crate::upstream::{ProviderKind, UpstreamSettings};

/// Where an engine tells its metrics: a URL, or a path behind the origin of `base_url`. Faults do
/// not quote it, as with a base URL.
pub(super) fn read_metrics_url(item: &Item<'_>, base_url: Option<&str>) -> Option<String> {
    let text = item.string()?;
    let url = if text.starts_with('/') && !text.starts_with("//") {
        // Without a base URL there is a fault already.
        Url::parse(base_url?).ok()?.join(&text).ok()
    } else {
        http_url(&text, &["http", "https"])
    };
    let Some(url) = url else {
        item.fault("expected a URL that begins with http:// or https://, or a path");
        return None;
    };
    match check_url(&url) {
        Ok(()) => Some(url.into()),
        Err(message) => {
            item.fault(message);
            None
        }
    }
}

/// A URL with these pairs in its query. Values are quoted as a URL needs it.
pub(super) fn with_query(url: &str, pairs: Vec<(String, Item<'_>)>) -> String {
    let Ok(mut url) = Url::parse(url) else {
        return url.to_owned();
    };
    for (name, item) in pairs {
        if secret::is_secret_name(&name) {
            item.fault(
                "a secret is not written here: send it as a header, by `api_key_env` with \
                 `auth_header`, or by `headers_env`",
            );
        } else if url.query_pairs().any(|(known, _)| known == name) {
            item.fault("stands in the query of `base_url`, too");
        } else if let Some(value) = item.string() {
            url.query_pairs_mut().append_pair(&name, &value);
        }
    }
    url.into()
}

/// Faults of a URL do not quote it: it may hold a secret in the wrong place.
pub(super) fn base_url_of(
    item: &Item<'_>,
    provider: ProviderKind,
    path: Option<&str>,
) -> Option<String> {
    // The other providers put their own version behind the server's origin.
    let of_provider = if provider.translates() { "" } else { "/v1" };
    normal_base_url(&item.string()?, path.unwrap_or(of_provider))
        .map_err(|message| item.fault(message))
        .ok()
}

/// `default_path` stands where the URL has none.
fn normal_base_url(text: &str, default_path: &str) -> Result<String, &'static str> {
    let mut url = http_url(text, &["http", "https"])
        .ok_or("expected a URL that begins with http:// or https://")?;
    check_url(&url)?;
    if url.query() == Some("") {
        url.set_query(None);
    }
    let path = match url.path().trim_end_matches('/') {
        "" => default_path.to_owned(),
        path => path.to_owned(),
    };
    url.set_path(&path);
    Ok(url.into())
}

/// What holds no secret and no fragment may be shown, and called.
fn check_url(url: &Url) -> Result<(), &'static str> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL holds no user or password: name a key with `api_key_env`");
    }
    if url.fragment().is_some() {
        return Err("the URL has a fragment, which no server is sent");
    }
    if url
        .query_pairs()
        .any(|(name, _)| secret::is_secret_name(&name))
    {
        return Err(
            "a URL is shown in logs, so it holds no secret: send a key as a header, by \
             `api_key_env` or `headers_env`",
        );
    }
    Ok(())
}

/// A URL with a host and one of `schemes`. Spaces, which parsing would drop, are refused.
pub(super) fn http_url(text: &str, schemes: &[&str]) -> Option<Url> {
    let (scheme, _) = text.split_once("://")?;
    if !schemes.contains(&scheme.to_ascii_lowercase().as_str()) {
        return None;
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return None;
    }
    Url::parse(text).ok().filter(Url::has_host)
}

/// What is possible, and most likely not meant.
pub(super) fn warning(upstream: &UpstreamSettings) -> Option<String> {
    let url = Url::parse(&upstream.base_url).ok()?;
    let is_open = url.scheme() == "http" && !upstream.keys.is_empty() && is_public(&url);
    is_open.then(|| {
        format!(
            "the key of the upstream {} goes over the open network: its base_url begins with \
             http://, not https://",
            upstream.name
        )
    })
}

/// Whether a URL leads out of one's own network, as far as its host says.
fn is_public(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => {
            let [first, second, ..] = ip.octets();
            // Of carriers, and of overlay networks.
            let is_shared = first == 100 && (64..128).contains(&second);
            let is_own = ip.is_loopback() || ip.is_private() || ip.is_link_local();
            !is_own && !is_shared && !ip.is_unspecified()
        }
        Ok(IpAddr::V6(ip)) => {
            let is_own = ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local();
            !is_own && !ip.is_unspecified()
        }
        Err(_) => {
            const OWN: [&str; 7] = [
                "localhost",
                "local",
                "internal",
                "lan",
                "home",
                "test",
                "intranet",
            ];
            let last = host.trim_end_matches('.').rsplit_once('.');
            last.is_some_and(|(_, last)| !OWN.contains(&last))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_brought_into_one_form() {
        for (written, normal) in [
            ("http://gpu", "http://gpu/v1"),
            ("http://gpu:8000", "http://gpu:8000/v1"),
            ("http://gpu:8000/", "http://gpu:8000/v1"),
            ("http://gpu:8000//", "http://gpu:8000/v1"),
            ("http://gpu:8000/v1", "http://gpu:8000/v1"),
            ("http://gpu:8000/v1/", "http://gpu:8000/v1"),
            ("HTTPS://GPU/openai/v1//", "https://gpu/openai/v1"),
            ("http://[::1]:8000", "http://[::1]:8000/v1"),
            ("http://gpu/v1?", "http://gpu/v1"),
            ("http://gpu?api-version=1", "http://gpu/v1?api-version=1"),
            (
                "https://gpu/openai/deployments/d/?api-version=2024-10-21&x=a%20b",
                "https://gpu/openai/deployments/d?api-version=2024-10-21&x=a%20b",
            ),
        ] {
            assert_eq!(
                normal_base_url(written, "/v1"),
                Ok(normal.to_owned()),
                "{written}"
            );
        }
    }

    #[test]
    fn a_public_address_is_told_from_ones_own() {
        for (url, expected) in [
            ("http://api.vendor.example/v1", true),
            ("http://8.8.8.8/v1", true),
            ("http://[2001:4860::8888]/v1", true),
            ("http://gpu:8000/v1", false),
            ("http://gpu.internal/v1", false),
            ("http://ollama.svc.cluster.local./v1", false),
            ("http://localhost/v1", false),
            ("http://10.0.0.5:8000/v1", false),
            ("http://172.17.0.1/v1", false),
            ("http://100.100.1.2/v1", false),
            ("http://[::1]:8000/v1", false),
            ("http://[fd00::1]/v1", false),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(is_public(&url), expected, "{url}");
        }
    }

    #[test]
    fn what_is_no_base_url_is_refused() {
        for written in [
            "",
            "gpu:8000/v1",
            "localhost:8000",
            "ftp://gpu/v1",
            "http:gpu",
            "http://",
            "http://gpu:99999/v1",
            "http://gpu /v1",
            "http://gpu/v1\n",
            "http://user@gpu/v1",
            "http://user:pass@gpu/v1",
            "http://:pass@gpu/v1",
            "http://gpu/v1?key=secret",
            "http://gpu/v1?api-version=1&API_KEY=secret",
            "http://gpu/v1?accessToken=secret",
            "http://gpu/v1?sig=secret",
            "http://gpu/v1#part",
        ] {
            assert!(normal_base_url(written, "/v1").is_err(), "{written:?}");
        }
    }
}
