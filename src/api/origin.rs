//! Where no keys are needed, only this machine may call. A web page from elsewhere can make a
//! browser call a local server in two ways: by a name of its own that leads to 127.0.0.1 (seen by
//! the `Host`), or across origins (seen by the `Origin`).

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::header;
use axum::http::request::Parts;

use super::error::{self, Result};

/// Refuses a request whose `Host` or `Origin` is not this machine.
///
/// # Errors
/// 403.
pub fn require_local(parts: &Parts) -> Result<()> {
    let hosts = parts.headers.get_all(header::HOST);
    let hosts = hosts.iter().map(|value| value.to_str().unwrap_or_default());
    let authority = parts
        .uri
        .authority()
        .map(axum::http::uri::Authority::as_str);
    if !hosts.chain(authority).all(is_loopback) {
        return Err(error::forbidden(
            "This server needs no API key, so it answers only to this machine: use \
             http://127.0.0.1 or http://localhost, or set `auth.required = true` and make a key.",
        ));
    }
    let origins = parts.headers.get_all(header::ORIGIN);
    let local = |origin: &str| {
        let host = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"));
        host.is_some_and(is_loopback)
    };
    let mut origins = origins
        .iter()
        .map(|value| value.to_str().unwrap_or_default());
    if origins.all(local) {
        Ok(())
    } else {
        Err(error::forbidden(
            "This server needs no API key, so web pages from elsewhere may not use it.",
        ))
    }
}

/// Whether `host` or `host:port` is this machine.
fn is_loopback(authority: &str) -> bool {
    let of_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = authority.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        let port_is_well_formed = match port.strip_prefix(':') {
            Some(port) => of_port(port),
            None => port.is_empty(),
        };
        return port_is_well_formed
            && address
                .parse::<Ipv6Addr>()
                .is_ok_and(|address| address.to_canonical().is_loopback());
    }
    let host = match authority.split_once(':') {
        Some((host, port)) if of_port(port) => host,
        Some(_) => return false,
        None => authority,
    };
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_local() {
        for (host, local) in [
            ("localhost", true),
            ("LocalHost:8080", true),
            ("127.0.0.1", true),
            ("127.9.9.9:1", true),
            ("[::1]", true),
            ("[::1]:8080", true),
            ("[::ffff:127.0.0.1]:80", true),
            ("", false),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("localhost:80@evil.example", false),
            ("10.0.0.1:8080", false),
            ("0.0.0.0:8080", false),
            ("[::]:8080", false),
            ("[::1].evil.example", false),
            ("2130706433", false),
        ] {
            assert_eq!(is_loopback(host), local, "{host:?}");
        }
    }

    #[test]
    fn a_page_from_elsewhere_is_refused() {
        for (origin, allowed) in [
            ("http://localhost:3000", true),
            ("https://127.0.0.1", true),
            ("null", false),
            ("https://evil.example", false),
            ("file://", false),
        ] {
            let request = axum::http::Request::builder()
                .uri("/v1/models")
                .header("host", "localhost:8080")
                .header("origin", origin)
                .body(())
                .unwrap();
            assert_eq!(
                require_local(&request.into_parts().0).is_ok(),
                allowed,
                "{origin}"
            );
        }
    }
}
