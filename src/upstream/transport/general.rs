//! Proxies, and all else that reqwest knows.

use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{Method, Proxy, Request, Url, redirect, retry};
use secrecy::ExposeSecret;

use super::certificates::{self, Named};
use super::error::{Error, innermost, lack, none_is_left};
use super::keep::{IDLE_MAX, KEEPALIVE, KEEPALIVE_RETRIES};
use crate::upstream::settings::UpstreamSettings;

#[derive(Debug)]
pub(in crate::upstream) struct General {
    client: reqwest::Client,
}

impl General {
    pub(super) fn new(config: &UpstreamSettings, base: &Url) -> Result<Self, String> {
        let mut builder = reqwest::Client::builder()
            // One connection a call. Over HTTP/2 all calls would share one: a server that takes 100
            // streams would halve a concurrency of 200 unseen, and a reset would fail every call.
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .connect_timeout(config.time_to_connect())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(config.concurrency)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(KEEPALIVE_RETRIES);
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            builder = builder.tcp_user_timeout(super::keep::UNACKNOWLEDGED_MAX);
        }
        let mut speaks_tls = base.scheme() == "https";
        if let Some(proxy) = &config.proxy {
            let url = proxy.expose_secret();
            speaks_tls |= url.starts_with("https:");
            let proxy = Proxy::all(url).map_err(|_| "its proxy is no URL of a proxy".to_owned())?;
            builder = builder.proxy(proxy);
        }
        let named = Named::read(config)?;
        let lacks_own = named.is_empty();
        builder = match (speaks_tls, lacks_own) {
            (true, true) => builder.tls_certs_merge([]),
            (true, false) => builder.tls_backend_preconfigured(named.into_client()?),
            // Without TLS no certificates are needed: the system, which may have none, is not
            // asked.
            (false, _) => builder.tls_certs_only([]),
        };
        let client = builder.build().map_err(|error| match innermost(&error) {
            problem if speaks_tls && lacks_own => {
                format!("{problem} (install the system's CA certificates, or set ca_file)")
            }
            problem => problem,
        })?;
        Ok(Self { client })
    }

    pub(super) async fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<reqwest::Response, Error> {
        let mut request = Request::new(method, url);
        *request.headers_mut() = headers;
        if !body.is_empty() {
            *request.body_mut() = Some(body.into());
        }
        self.client.execute(request).await.map_err(|e| error(&e))
    }
}

pub(super) fn error(error: &reqwest::Error) -> Error {
    let cause = certificates::advice(error).unwrap_or_else(|| innermost(error));
    if let Some(lack) = lack(error) {
        lack
    } else if error.is_dns() && none_is_left() {
        Error::NoDescriptor
    } else if !error.is_connect() {
        Error::Lost(cause)
    } else if error.is_dns() {
        Error::Resolve(cause)
    } else if error.is_timeout() {
        Error::ConnectTimeout
    } else {
        Error::Connect(cause)
    }
}
