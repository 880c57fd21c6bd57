//! The list of keys, for people and for programs.

use serde::Serialize;

use crate::cli::figures::{self, moment};
use crate::cli::table::{Column, Table};
use crate::domain::clock::seconds;
use crate::store::ApiKey;

/// A key as `list --json` prints it. Times are in Unix seconds.
#[derive(Serialize)]
pub(super) struct ListedKey {
    id: String,
    /// Null where the key belongs to no tenant.
    tenant: Option<String>,
    name: String,
    hint: String,
    scopes: Vec<&'static str>,
    /// `active`, `expired` or `revoked`.
    state: &'static str,
    created_at: i64,
    expires_at: Option<i64>,
    last_used_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl ListedKey {
    pub(super) fn new(key: ApiKey, now_ms: i64) -> Self {
        ListedKey {
            state: match key.revoked_at {
                Some(_) => "revoked",
                None if key.has_expired(now_ms) => "expired",
                None => "active",
            },
            tenant: key.scopes.open_the_api().then_some(key.tenant),
            scopes: key.scopes.names().collect(),
            id: key.id,
            name: key.name,
            hint: key.hint,
            created_at: seconds(key.created_at),
            expires_at: key.expires_at.map(seconds),
            last_used_at: key.last_used_at.map(seconds),
            revoked_at: key.revoked_at.map(seconds),
        }
    }
}

/// The keys, for people. Times are in UTC.
pub(super) fn table(
    keys: Vec<ListedKey>,
    now_ms: i64,
    is_wide: bool,
    width: Option<usize>,
) -> String {
    if keys.is_empty() {
        return "There are no keys. `nightshift keys create --name NAME` makes one.\n".to_owned();
    }
    let now = seconds(now_ms);
    let mut text = String::new();
    if is_wide {
        let mut table = Table::new(
            [
                "ID",
                "TENANT",
                "NAME",
                "KEY",
                "SCOPES",
                "CREATED",
                "EXPIRES",
                "LAST USED",
                "STATE",
            ]
            .map(Column::whole),
        );
        for key in keys {
            table.row([
                key.id,
                key.tenant.unwrap_or_else(|| "-".to_owned()),
                key.name,
                key.hint,
                key.scopes.join(","),
                moment(key.created_at),
                key.expires_at.map_or_else(|| "never".to_owned(), moment),
                key.last_used_at.map_or_else(|| "never".to_owned(), moment),
                key.state.to_owned(),
            ]);
        }
        table.write(&mut text, None);
    } else {
        let mut table = Table::new([
            Column::whole("ID"),
            Column::cut("TENANT"),
            Column::cut("NAME"),
            Column::cut("SCOPES"),
            Column::whole("LAST USED"),
            Column::whole("STATE"),
        ]);
        for key in keys {
            let used = key.last_used_at.map(|at| figures::ago(now - at));
            let state = match key.expires_at {
                Some(at) if key.state == "active" => {
                    format!("{} left", figures::seconds((at - now) as f64))
                }
                _ => key.state.to_owned(),
            };
            table.row([
                key.id,
                key.tenant.unwrap_or_else(|| "-".to_owned()),
                key.name,
                key.scopes.join(","),
                used.unwrap_or_else(|| "never".to_owned()),
                state,
            ]);
        }
        table.write(&mut text, width);
    }
    text.trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::auth;
    use crate::domain::id;
    use crate::domain::scope::Scopes;

    #[test]
    fn the_list_fits_80_columns_and_no_id_is_cut() {
        let now_ms = 1_900_000_000_000;
        let key = |scopes: &str, expires_at: Option<i64>| {
            let stored = ApiKey {
                id: id::key(),
                tenant: "département-recherche".to_owned(),
                name: "the laptop of somebody with a long name".to_owned(),
                hash: String::new(),
                hint: auth::new_key().hint,
                scopes: Scopes::parse(scopes).expect("are scopes"),
                created_at: 0,
                expires_at,
                last_used_at: expires_at.map(|_| now_ms - 3 * 86_400_000),
                revoked_at: None,
            };
            ListedKey::new(stored, now_ms)
        };
        let keys = || {
            vec![
                key("api", Some(now_ms + 7_700_000_000)),
                key("api,metrics,admin", None),
                key("api", Some(now_ms)),
            ]
        };
        let shown = table(keys(), now_ms, false, Some(80));
        for line in shown.lines() {
            let width = console::measure_text_width(line);
            assert!(width <= 80, "{width}: {line}");
        }
        assert_eq!(shown.matches("key_").count(), 3);
        for row in shown.lines().skip(1) {
            let id = row.split_whitespace().next().unwrap_or_default();
            assert_eq!(id.len(), "key_".len() + 22, "{row}");
        }
        for word in ["89d 02h left", "3d ago", "never", "active", "expired"] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        let all = table(keys(), now_ms, true, Some(80));
        for word in ["sk-ns-", "2030-06-14 20:40", "département-recherche"] {
            assert!(all.contains(word), "{word}: {all}");
        }
    }
}
