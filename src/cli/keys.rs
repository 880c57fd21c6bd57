//! `nightshift keys`: API keys, made, listed and revoked.

mod expiry;
mod list;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use secrecy::ExposeSecret as _;

use super::configuration::{ConfigArgs, load};
use super::figures::moment;
use super::table::width_of_output;
use crate::api::auth;
use crate::app;
use crate::domain::clock::{Clock, seconds};
use crate::domain::id;
use crate::domain::scope::Scopes;
use crate::store::ApiKey;
use expiry::Expiry;
use list::{ListedKey, table};

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
        let config = load(&config.overrides())?;
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
            let config = load(&config.overrides())?;
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
