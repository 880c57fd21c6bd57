//! What is asked of the database itself, beside running servers or without any.

use std::time::Duration;

use anyhow::{Context as _, bail};

use super::list::Listed;
use crate::api::upstreams::{SwitchedUpstream, UndrainedReplica, in_words, overruled};
use crate::app;
use crate::cli::configuration::load;
use crate::config::{Config, Environment, Overrides, nearest};
use crate::domain::clock::{Clock, seconds};
use crate::store::{Store, SwitchRow};
use crate::upstream::UpstreamSettings;

/// How often the database is asked whether an upstream is drained.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A configuration, and its database.
pub(super) struct Direct {
    config: Config,
    store: Store,
    /// Who asks, for people.
    by: String,
}

impl Direct {
    pub(super) async fn open(
        overrides: &Overrides,
        environment: &Environment,
    ) -> anyhow::Result<Self> {
        let config = load(overrides)?;
        // What is set in a database that nobody has would go unheard.
        if let Some(file) = app::missing_file(&config) {
            bail!(
                "there is no database at {}: name the server's with --database or --config",
                file.display()
            );
        }
        let store = app::open_store(&config, Clock::default()).await?;
        let user = environment.get("USER").or(environment.get("LOGNAME"));
        let by = user.map_or_else(
            || "the command line".to_owned(),
            |user| format!("the command line ({user})"),
        );
        Ok(Self { config, store, by })
    }

    /// How the upstreams of the configuration stand.
    pub(super) async fn list(self) -> anyhow::Result<Vec<Listed>> {
        let switches = self.store.upstream_switches().await?;
        let mut listed = Vec::new();
        for upstream in &self.config.upstreams {
            let set = switches.iter().find(|set| set.upstream == upstream.name);
            let set = set.filter(|set| set.configured == upstream.enabled);
            let undrained = match set {
                Some(set) if !set.enabled => self.undrained(set).await?,
                _ => Vec::new(),
            };
            listed.push(of(upstream, set, &undrained));
        }
        self.store.close().await;
        Ok(listed)
    }

    /// Does as the server's endpoints of these names do.
    pub(super) async fn switch(self, name: &str, what: &str) -> anyhow::Result<SwitchedUpstream> {
        let upstream = find(&self.config, name)?;
        let enabled = what == "enable";
        let set = self
            .store
            .switch_upstream(name, enabled, upstream.enabled, &self.by)
            .await?;
        if what == "drain" {
            self.wait_until_drained(&set).await?;
        }
        self.store.close().await;
        Ok(set.into())
    }

    async fn undrained(&self, set: &SwitchRow) -> anyhow::Result<Vec<UndrainedReplica>> {
        let undrained = self.store.undrained(&set.upstream, set.changed_at).await?;
        Ok(undrained.into_iter().map(Into::into).collect())
    }

    async fn wait_until_drained(&self, set: &SwitchRow) -> anyhow::Result<()> {
        let mut told = Vec::new();
        loop {
            if let Some(message) = overruled(set, &self.store.upstream_switches().await?) {
                bail!(message);
            }
            let undrained = self.undrained(set).await?;
            if undrained.is_empty() {
                return Ok(());
            }
            if undrained != told {
                tell!("Waiting for {}", in_words(&undrained));
                told = undrained;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The upstream of this name.
pub(super) fn find<'c>(config: &'c Config, name: &str) -> anyhow::Result<&'c UpstreamSettings> {
    let known = || config.upstreams.iter();
    let found = known().find(|upstream| upstream.name == name);
    found.with_context(|| {
        let nearest = nearest(name, known().map(|upstream| upstream.name.as_str()));
        let nearest = nearest.map(|name| format!("; the nearest is {name}"));
        format!(
            "the configuration has no upstream {name}{}",
            nearest.unwrap_or_default()
        )
    })
}

fn of(
    upstream: &UpstreamSettings,
    set: Option<&SwitchRow>,
    undrained: &[UndrainedReplica],
) -> Listed {
    let enabled = set.map_or(upstream.enabled, |set| set.enabled);
    let cause = match set {
        None if !enabled => Some("disabled in the configuration".to_owned()),
        Some(set) if !enabled && undrained.is_empty() => Some(format!(
            "disabled by {}; nothing is in flight",
            set.changed_by
        )),
        Some(set) if !enabled => Some(format!(
            "disabled by {}; not drained by {}",
            set.changed_by,
            in_words(undrained)
        )),
        _ => None,
    };
    Listed {
        name: upstream.name.clone(),
        state: if enabled { "enabled" } else { "disabled" }.to_owned(),
        cause,
        in_flight: None,
        share: None,
        limit: upstream.concurrency,
        changed_by: set.map(|set| set.changed_by.clone()),
        changed_at: set.map(|set| seconds(set.changed_at)),
        windows: Vec::new(),
    }
}
