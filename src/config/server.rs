//! `[server]`: where the HTTP server listens.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use reqwest::Url;

use super::error::nearest;
use super::reader::{Item, Reader};

/// `[server]`
#[derive(Clone, Debug)]
pub struct Server {
    /// host:port; port 0 takes a free one.
    pub listen: String,
    pub role: Role,
    /// Addresses that many clients share, and which may hold any number of connections.
    pub trusted_proxies: Vec<IpNet>,
    /// Web pages from these origins may use the API: `https://host` or `http://host:port`.
    pub allowed_origins: Vec<String>,
}

/// Which half of the server a process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Both.
    #[default]
    All,
    /// The HTTP API without the worker.
    Api,
    /// The worker without the HTTP API.
    Worker,
}

impl Role {
    /// What `[server] role` and `--role` can say.
    pub const ALL: [Role; 3] = [Role::All, Role::Api, Role::Worker];

    /// As `[server] role` names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::All => "all",
            Role::Api => "api",
            Role::Worker => "worker",
        }
    }

    /// Whether the process answers OpenAI's API.
    #[must_use]
    pub fn serves(self) -> bool {
        self != Role::Worker
    }

    /// Whether the process runs the worker.
    #[must_use]
    pub fn works(self) -> bool {
        self != Role::Api
    }
}

impl Server {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let listen = reader.take("listen").and_then(|item| {
            let listen = item.string()?;
            if let Err(message) = check_listen(&listen) {
                item.fault(message);
            }
            Some(listen)
        });
        let role = reader.take("role").and_then(|item| {
            let name = item.string()?;
            let role = Role::ALL.into_iter().find(|role| role.as_str() == name);
            if role.is_none() {
                let known = nearest(&name, Role::ALL.map(Role::as_str)).unwrap_or_default();
                item.fault(format!(
                    "expected all, api or worker; the nearest is {known}"
                ));
            }
            role
        });
        let proxies = reader.take("trusted_proxies").and_then(Item::array);
        let proxies = proxies.unwrap_or_default();
        let trusted_proxies = proxies.iter().filter_map(network).collect();
        let origins = reader.take("allowed_origins").and_then(Item::array);
        let allowed_origins = origins
            .unwrap_or_default()
            .iter()
            .filter_map(origin)
            .collect();
        reader.finish();
        Self {
            listen: listen.unwrap_or_default(),
            role: role.unwrap_or_default(),
            trusted_proxies,
            allowed_origins,
        }
    }

    /// Whether only this machine can reach [`Server::listen`]: `localhost`, `127.0.0.0/8` or
    /// `::1`. Any other host name counts as reachable from elsewhere.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.listen.parse::<SocketAddr>() {
            Ok(address) => address.ip().to_canonical().is_loopback(),
            Err(_) => self
                .listen
                .rsplit_once(':')
                .is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost")),
        }
    }
}

/// A network, or one address.
fn network(item: &Item<'_>) -> Option<IpNet> {
    let text = item.string()?;
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network = address.or_else(|_| text.parse::<IpNet>());
    if network.is_err() {
        item.fault("expected an address or a network, such as 10.0.0.5 or 10.0.0.0/8");
    }
    network.ok()
}

/// An origin, as a browser writes it.
fn origin(item: &Item<'_>) -> Option<String> {
    let text = item.string()?;
    if text == "*" {
        item.fault(
            "all origins cannot be allowed: any web page could then try keys. Name each origin, \
             such as https://app.example.com",
        );
        return None;
    }
    // A browser's text has no path, and no port where it is the scheme's own.
    let written = Url::parse(&text).map(|url| url.origin().ascii_serialization());
    let is_web = text.starts_with("http://") || text.starts_with("https://");
    if !is_web || written.as_deref() != Ok(&text) {
        item.fault(
            "expected an origin as browsers send it, such as https://app.example.com or \
             http://localhost:3000: in lower case, without a path or the usual port",
        );
        return None;
    }
    Some(text)
}

/// Whether an address to listen on has a form that the system can resolve; if not, what is wrong.
fn check_listen(listen: &str) -> Result<(), &'static str> {
    if listen.parse::<SocketAddr>().is_ok() {
        return Ok(());
    }
    let Some((host, port)) = listen.rsplit_once(':') else {
        return Err("expected host:port, such as 127.0.0.1:8080");
    };
    if host.is_empty() {
        return Err("the host is missing: 127.0.0.1 for this machine alone, 0.0.0.0 for all");
    }
    if host.contains(':') && !host.starts_with('[') {
        return Err("an IPv6 address stands in brackets, such as [::1]:8080");
    }
    if port.parse::<u16>().is_err() || port.starts_with('+') {
        return Err("the port must be from 0 to 65535");
    }
    let of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !host.chars().all(of_a_name) {
        return Err("the host is neither an address nor a name");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for (listen, loopback) in [
            ("127.0.0.1:8080", true),
            ("127.9.9.9:0", true),
            ("[::1]:8080", true),
            ("[::ffff:127.0.0.1]:8080", true),
            ("localhost:8080", true),
            ("LOCALHOST:8080", true),
            ("0.0.0.0:8080", false),
            ("[::]:8080", false),
            ("10.0.0.5:8080", false),
            ("my-host:8080", false),
            ("localhost.example.com:8080", false),
        ] {
            assert_eq!(check_listen(listen), Ok(()), "{listen}");
            let server = Server {
                listen: listen.to_owned(),
                role: Role::All,
                trusted_proxies: Vec::new(),
                allowed_origins: Vec::new(),
            };
            assert_eq!(server.is_loopback(), loopback, "{listen}");
        }
    }

    #[test]
    fn what_nobody_can_listen_on_is_refused() {
        for listen in [
            "8080",
            ":8080",
            "localhost",
            "localhost:",
            "localhost:65536",
            "localhost:+80",
            "::1:8080",
            "[::g]:8080",
            "http://localhost:8080",
            "a b:80",
        ] {
            assert!(check_listen(listen).is_err(), "{listen}");
        }
    }
}
