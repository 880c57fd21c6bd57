//! `nightshift keys`: API keys, made, listed and revoked.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use secrecy::ExposeSecret as _;
use serde::Serialize;

use super::ConfigArgs;
use super::status::table::{Column, Table, ago, duration, width_of_output};
use crate::api::auth;
use crate::app;
use crate::config::{DurationError, parse_duration};
use crate::domain::clock::{Clock, seconds};
use crate::domain::id;
use crate::domain::scope::Scopes;
use crate::store::ApiKey;

const EXAMPLE: &str = "\
Examples:
  nightshift keys create --name laptop
  nightshift keys create --name contractor --tenant research --expires 90d
  nightshift keys create --name prometheus --scope metrics
  nightshift keys create --name ops --scope admin
  nightshift keys list
  nightshift keys revoke key_…";

const CREATE_EXAMPLE: &str = "\
Examples:
  nightshift keys create --name laptop --tenant research
  nightshift keys create --name contractor --tenant research --expires 90d
  nightshift keys create --name prometheus --scope metrics

Scopes:
  api      the files and batches of --tenant
  metrics  /metrics, and nothing else; the key belongs to no tenant
  admin    /metrics, /admin, and to retrieve and cancel any tenant's batch,
           which is logged";
const LIST_EXAMPLE: &str = "\
Examples:
  nightshift keys list --config nightshift.toml
  nightshift keys list --wide
  nightshift keys list --json | jq '.[] | select(.last_used_at == null)'";
const REVOKE_EXAMPLE: &str = "\
Example:
  nightshift keys revoke key_…";

/// Create, list and revoke API keys. Works beside a running server.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum KeysCommand {
    /// Create a key, and print it on standard output, this once
    #[command(after_help = CREATE_EXAMPLE)]
    Create {
        #[command(flatten)]
        config: ConfigArgs,
        /// What the key is for: for people
        #[arg(long, value_name = "NAME", value_parser = label)]
        name: String,
        /// Whose files and batches it can see [default: default]
        #[arg(long, value_name = "TENANT", value_parser = label)]
        tenant: Option<String>,
        /// What it opens: api, metrics, admin, or several of them with commas between them
        #[arg(long, value_name = "SCOPES", default_value = "api", value_parser = Scopes::parse)]
        scope: Scopes,
        /// Short for --scope api,admin
        #[arg(long, conflicts_with = "scope")]
        admin: bool,
        /// When it ends: after a time such as 90d or 12h, or at a date such as 2030-01-31 (its
        /// beginning, in UTC) or 2030-01-31T12:00:00Z
        #[arg(long, value_name = "WHEN", value_parser = Expiry::parse)]
        expires: Option<Expiry>,
    },
    /// List all keys, without the keys themselves: ids, owners, scopes, when each was used last
    #[command(after_help = LIST_EXAMPLE)]
    List {
        #[command(flatten)]
        config: ConfigArgs,
        /// Print a JSON array; times are in Unix seconds
        #[arg(long)]
        json: bool,
        /// Show also each key's first and last characters, and exact times; cut nothing
        #[arg(long, conflicts_with = "json")]
        wide: bool,
    },
    /// Revoke a key: it is refused everywhere within 5 seconds
    #[command(after_help = REVOKE_EXAMPLE)]
    Revoke {
        #[command(flatten)]
        config: ConfigArgs,
        /// The key's id, as `keys list` shows it
        id: String,
    },
}

/// When a key ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    After(Duration),
    At(Timestamp),
}

impl Expiry {
    fn parse(text: &str) -> Result<Self, String> {
        match parse_duration(text) {
            Ok(duration) => return Ok(Expiry::After(duration)),
            Err(error @ DurationError::TooLong) => return Err(error.to_string()),
            // It may be a date.
            Err(DurationError::Malformed) => {}
        }
        let date = || {
            let date = text.parse::<Date>().ok()?;
            Some(date.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp())
        };
        let moment = text.parse::<Timestamp>().ok().or_else(date);
        moment.map(Expiry::At).ok_or_else(|| {
            "expected a time such as 90d or 12h, or a date such as 2030-01-31 or \
             2030-01-31T12:00:00Z"
                .to_owned()
        })
    }

    /// In milliseconds; `None` where that is not in the future.
    fn at_ms(self, now_ms: i64) -> Option<i64> {
        let at = match self {
            Expiry::After(duration) => now_ms + i64::try_from(duration.as_millis()).ok()?,
            Expiry::At(moment) => moment.as_millisecond(),
        };
        (at > now_ms).then_some(at)
    }
}

/// A key as `list --json` prints it. Times are in Unix seconds.
#[derive(Serialize)]
struct ListedKey {
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
    fn new(key: ApiKey, now_ms: i64) -> Self {
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

/// A name that can be shown on one line.
fn label(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() {
        Err("it is empty")
    } else if text.contains(char::is_control) {
        Err("it holds control characters, such as line breaks")
    } else {
        Ok(text.to_owned())
    }
}

pub(super) async fn run(args: KeysArgs) -> anyhow::Result<ExitCode> {
    let clock = Clock::default();
    // A database that is not there has no keys: its name is wrong, or its directory.
    let open = async |config: ConfigArgs| {
        let config = super::load(&config.overrides())?;
        if let Some(file) = app::missing_file(&config) {
            bail!(
                "there is no database at {}: name the server's with --database or --config",
                file.display()
            );
        }
        app::open_store(&config, clock.clone()).await
    };
    match args.command {
        KeysCommand::Create {
            config,
            name,
            tenant,
            scope,
            admin,
            expires,
        } => {
            let scopes = if admin {
                Scopes::TENANT_AND_ADMIN
            } else {
                scope
            };
            let tenant = match tenant {
                Some(tenant) if !scopes.open_the_api() => bail!(
                    "a key of the scope {scopes} belongs to no tenant: leave --tenant {tenant} \
                     out, or add the scope api (--scope api,{scopes})"
                ),
                None if scopes.open_the_api() => auth::DEFAULT_TENANT.to_owned(),
                tenant => tenant.unwrap_or_default(),
            };
            let config = super::load(&config.overrides())?;
            let missing = app::missing_file(&config);
            let store = app::open_store(&config, clock.clone()).await?;
            if let Some(file) = missing {
                tell!("Created the database {}.", file.display());
            }
            let key = auth::new_key();
            // By the database's clock, which decides when the key has expired.
            let created_at = store.now().await?;
            let expires_at = match expires {
                None => None,
                Some(expires) => Some(
                    expires
                        .at_ms(created_at)
                        .context("--expires: this time is not in the future")?,
                ),
            };
            let id = id::key();
            let stored = ApiKey {
                id: id.clone(),
                tenant: tenant.clone(),
                name,
                hash: key.hash,
                hint: key.hint,
                scopes,
                created_at,
                expires_at,
                last_used_at: None,
                revoked_at: None,
            };
            store.add_key(&stored).await?;
            let whose = if tenant.is_empty() {
                "no tenant".to_owned()
            } else {
                format!("tenant {tenant}")
            };
            let until = expires_at.map(|at| format!(", until {} UTC", moment(seconds(at))));
            let until = until.unwrap_or_default();
            tell!("Created {id} for {whose}, scope {scopes}{until}. The key is shown this once:");
            writeln!(std::io::stdout(), "{}", key.key.expose_secret())?;
            store.close().await;
        }
        KeysCommand::List { config, json, wide } => {
            let store = open(config).await?;
            let now_ms = store.now().await?;
            let keys = store.keys().await?.into_iter();
            let keys: Vec<_> = keys.map(|key| ListedKey::new(key, now_ms)).collect();
            store.close().await;
            let text = if json {
                serde_json::to_string_pretty(&keys)? + "\n"
            } else {
                table(keys, now_ms, wide, width_of_output())
            };
            std::io::stdout().write_all(text.as_bytes())?;
        }
        KeysCommand::Revoke { config, id } => {
            let store = open(config).await?;
            let revoked = store.revoke_key(&id).await?;
            store.close().await;
            if !revoked {
                bail!("there is no active key {id}; `nightshift keys list` shows all");
            }
            tell!("Revoked {id}.");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The keys, for people. Times are in UTC.
fn table(keys: Vec<ListedKey>, now_ms: i64, is_wide: bool, width: Option<usize>) -> String {
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
            let used = key.last_used_at.map(|at| ago(now - at));
            let state = match key.expires_at {
                Some(at) if key.state == "active" => {
                    format!("{} left", duration((at - now) as f64))
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

/// A time in Unix seconds, for people, to the minute.
fn moment(seconds: i64) -> String {
    let Ok(time) = Timestamp::from_second(seconds) else {
        return "?".to_owned();
    };
    time.strftime("%Y-%m-%d %H:%M").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_after_a_time_or_at_a_date() {
        let now_ms = 1_000;
        let at = |text| Expiry::parse(text).map(|expiry| expiry.at_ms(now_ms));
        assert_eq!(at("90d"), Ok(Some(now_ms + 90 * 86_400_000)));
        assert_eq!(at("2030-01-31"), Ok(Some(1_896_048_000_000)));
        assert_eq!(at("2030-01-31T12:00:00Z"), Ok(Some(1_896_091_200_000)));
        assert_eq!(at("1969-12-31"), Ok(None), "that is over");
        assert_eq!(at("0s"), Ok(None));
        for wrong in ["", "soon", "90", "2030-02-31", "-1d"] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
        let too_long = "a duration is at most 3650d".to_owned();
        assert_eq!(at("4000d"), Err(too_long), "its form is right");
    }

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
        for word in ["89d 2h left", "3d ago", "never", "active", "expired"] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        let all = table(keys(), now_ms, true, Some(80));
        for word in ["sk-ns-", "2030-06-14 20:40", "département-recherche"] {
            assert!(all.contains(word), "{word}: {all}");
        }
    }
}
