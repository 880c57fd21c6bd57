//! `nightshift keys`: API keys, made, listed and revoked.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::bail;
use secrecy::ExposeSecret as _;

use super::ConfigArgs;
use crate::api::auth;
use crate::app;
use crate::domain::clock::{Clock, seconds};
use crate::domain::id;
use crate::store::ApiKey;

const EXAMPLE: &str = "\
Examples:
  nightshift keys create --name laptop
  nightshift keys create --name ops --tenant platform --admin
  nightshift keys list
  nightshift keys revoke key_…";

const CREATE_EXAMPLE: &str = "\
Example:
  nightshift keys create --name laptop --tenant research";
const LIST_EXAMPLE: &str = "\
Example:
  nightshift keys list --config nightshift.toml";
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
        /// Whose files and batches it can see
        #[arg(long, value_name = "TENANT", default_value = "default", value_parser = label)]
        tenant: String,
        /// It may also read what operators read
        #[arg(long)]
        admin: bool,
    },
    /// List all keys, without the keys themselves
    #[command(after_help = LIST_EXAMPLE)]
    List {
        #[command(flatten)]
        config: ConfigArgs,
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
    let open = async |config: ConfigArgs| {
        let config = super::load(&config.overrides())?;
        app::open_store(&config, clock.clone()).await
    };
    match args.command {
        KeysCommand::Create {
            config,
            name,
            tenant,
            admin,
        } => {
            let store = open(config).await?;
            let key = auth::new_key();
            let created_at = clock.now_ms();
            let id = id::key();
            let stored = ApiKey {
                id: id.clone(),
                tenant: tenant.clone(),
                name,
                hash: key.hash,
                hint: key.hint,
                admin,
                created_at,
                revoked_at: None,
            };
            store.add_key(&stored).await?;
            eprintln!("Created {id} for tenant {tenant}. The key is shown this once:");
            writeln!(std::io::stdout(), "{}", key.key.expose_secret())?;
            store.close().await;
        }
        KeysCommand::List { config } => {
            let store = open(config).await?;
            let mut out = std::io::stdout().lock();
            writeln!(
                out,
                "{:<28} {:<16} {:<20} {:<16} {:<6} {:<30} STATE",
                "ID", "TENANT", "NAME", "KEY", "ADMIN", "CREATED"
            )?;
            for key in store.keys().await? {
                let state = key.revoked_at.map_or("active", |_| "revoked");
                writeln!(
                    out,
                    "{:<28} {:<16} {:<20} {:<16} {:<6} {:<30} {state}",
                    key.id,
                    key.tenant,
                    key.name,
                    key.hint,
                    if key.admin { "yes" } else { "no" },
                    created(&key),
                )?;
            }
            store.close().await;
        }
        KeysCommand::Revoke { config, id } => {
            let store = open(config).await?;
            let revoked = store.revoke_key(&id).await?;
            store.close().await;
            if !revoked {
                bail!("there is no active key {id}; `nightshift keys list` shows all");
            }
            eprintln!("Revoked {id}.");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// When a key was made, for people.
fn created(key: &ApiKey) -> String {
    let since_epoch = Duration::from_secs(u64::try_from(seconds(key.created_at)).unwrap_or(0));
    httpdate::fmt_http_date(UNIX_EPOCH + since_epoch)
}
