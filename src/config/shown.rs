//! URLs as they may be shown.

use reqwest::Url;

/// What of a URL's query says where something is, and holds no secret.
const PLACES: [&str; 3] = ["host", "port", "dbname"];

/// A URL without what may be a secret in it: the user, the password, the query but for the place of
/// a Postgres socket, and the fragment.
#[must_use]
pub fn shown_url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else {
        return "***".to_owned();
    };
    // A URL that cannot have them has none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    let places: Vec<_> = url
        .query_pairs()
        .filter(|(name, _)| PLACES.contains(&&**name))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    url.set_query(None);
    let mut shown = url.to_string();
    if !places.is_empty() {
        shown.push('?');
        shown.push_str(&places.join("&"));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_what_may_be_secret() {
        for (url, shown) in [
            ("http://10.0.0.5:8000/v1", "http://10.0.0.5:8000/v1"),
            (
                "https://user:hunter2@h/v1?key=hunter2#hunter2",
                "https://h/v1",
            ),
            (
                "postgres://u:hunter2@h:5432/db?password=hunter2&sslmode=require",
                "postgres://h:5432/db",
            ),
            (
                "postgres://u@localhost/db?host=/run/postgresql",
                "postgres://localhost/db?host=/run/postgresql",
            ),
            ("postgres://u:hunter2 h", "***"),
        ] {
            assert_eq!(shown_url(url), shown);
        }
    }
}
