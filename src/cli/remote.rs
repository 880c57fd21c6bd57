//! A server that runs, as commands ask it.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use reqwest::{Method, StatusCode, Url};

use crate::config::Environment;

/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The variable that names the server.
const URL: &str = "NIGHTSHIFT_URL";

/// Where a server is that nobody has named.
pub(super) const HERE: &str = "http://127.0.0.1:8080";

/// Where the server is, and who asks.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RemoteArgs {
    /// Where the server is; left out, the variable `NIGHTSHIFT_URL` says it, else it is
    /// `<http://127.0.0.1:8080>`
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// The environment variable that holds a key
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,
}

impl RemoteArgs {
    pub(super) fn new(url: Option<String>, api_key_env: Option<String>) -> Self {
        Self { url, api_key_env }
    }
}

/// A server to ask.
#[derive(Clone)]
pub(super) struct Remote {
    base: Url,
    key: Option<String>,
    client: reqwest::Client,
    /// How long the server may take to answer. `None`: as long as it needs.
    timeout: Option<Duration>,
}

impl Remote {
    /// The same server, which may take as long as it needs to answer.
    pub(super) fn patient(&self) -> Self {
        let timeout = None;
        Self {
            timeout,
            ..self.clone()
        }
    }

    pub(super) fn new(args: &RemoteArgs, environment: &Environment) -> anyhow::Result<Self> {
        let named = args.url.as_deref().or_else(|| environment.get(URL));
        let text = named.unwrap_or(HERE).trim_end_matches('/');
        let base = Url::parse(text).ok();
        let base = base.filter(|url| matches!(url.scheme(), "http" | "https"));
        let base = base.with_context(|| format!("--url {text}: expected an http:// URL"))?;
        let key = match &args.api_key_env {
            None => None,
            Some(name) => {
                let key = environment.get(name).map(str::to_owned);
                Some(key.with_context(|| format!("--api-key-env: the variable {name} is not set"))?)
            }
        };
        let client = reqwest::Client::builder().no_proxy();
        let client = client.connect_timeout(TIMEOUT);
        let client = client.redirect(reqwest::redirect::Policy::none()).build()?;
        let timeout = Some(TIMEOUT);
        Ok(Self {
            base,
            key,
            client,
            timeout,
        })
    }

    /// What the server answers to a GET.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<String> {
        self.get_with(path, &[]).await
    }

    /// The same with a query.
    pub(super) async fn get_with(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> anyhow::Result<String> {
        let path = path.trim_start_matches('/');
        self.ask(Method::GET, &[path], query).await
    }

    /// What the server answers to a DELETE with this query.
    pub(super) async fn delete(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> anyhow::Result<String> {
        let path = path.trim_start_matches('/');
        self.ask(Method::DELETE, &[path], query).await
    }

    /// What the server answers to a POST without a body, to a path of these parts.
    pub(super) async fn post(&self, parts: &[&str]) -> anyhow::Result<String> {
        self.ask(Method::POST, parts, &[]).await
    }

    async fn ask(
        &self,
        method: Method,
        parts: &[&str],
        query: &[(&str, &str)],
    ) -> anyhow::Result<String> {
        let mut url = self.base.clone();
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            // A part may be a path; a name in it may hold anything.
            match parts {
                [whole] => path.extend(whole.split('/')),
                parts => path.extend(parts),
            };
        }
        let mut request = self.client.request(method, url.clone());
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(timeout) = self.timeout {
            request = request.timeout(timeout);
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(error))?;
        let status = response.status();
        let text = response
            .text()
            .await
            .map_err(|error| self.unreachable(error))?;
        match status {
            StatusCode::OK => Ok(text),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!(
                "the server refuses ({status}): name the variable that holds a key made with \
                 `nightshift keys create{}` in --api-key-env",
                if parts.first() == Some(&"v1") {
                    ""
                } else {
                    " --scope admin"
                }
            ),
            _ => match message(&text) {
                Some(message) => bail!("the server answered {status}: {message}"),
                None => bail!("{} answered {status}", shown(&url)),
            },
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let mut url = shown(&self.base);
        url.set_path("");
        anyhow!(error.without_url()).context(format!("cannot reach the server at {url}"))
    }
}

/// A URL without a password that may be in it.
fn shown(url: &Url) -> Url {
    let mut url = url.clone();
    // A URL that cannot have them has none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

/// What an error of the API says.
fn message(text: &str) -> Option<String> {
    let error: serde_json::Value = serde_json::from_str(text).ok()?;
    error["error"]["message"].as_str().map(str::to_owned)
}
