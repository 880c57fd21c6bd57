//! Limits of the machine: file descriptors and ports. Seen before they are hit, and said.

use std::collections::BTreeMap;

use reqwest::Url;
use rustix::process::{Resource, getrlimit};
use secrecy::ExposeSecret;

use crate::config::Config;
use crate::upstream::{Http2, UpstreamSettings};

/// Descriptors beside those of calls and of clients: the database, the log, what the runtime needs.
const OWN: u64 = 64;
/// Calls on one connection over HTTP/2, of a server that takes as many as is usual.
const CALLS_OF_A_CONNECTION: u64 = 100;
/// Connections of clients that a server has places for, where it may have as many descriptors.
const CLIENTS_MAX: u64 = 1_024 + 64;

/// What the machine allows a process.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// File descriptors; `None`: as many as there are.
    descriptors: Option<u64>,
    /// Ports for connections to one address; `None`: not known.
    ports: Option<u64>,
}

impl Machine {
    fn look() -> Self {
        Self {
            descriptors: getrlimit(Resource::Nofile).current,
            ports: ports(),
        }
    }
}

/// In words, what the configuration asks for and this machine does not give. `has_clients`: the
/// process takes connections, too.
pub(super) fn warnings(config: &Config, has_clients: bool) -> Vec<String> {
    warnings_on(Machine::look(), &config.upstreams, has_clients)
}

fn warnings_on(machine: Machine, upstreams: &[UpstreamSettings], has_clients: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let calls: u64 = upstreams.iter().map(connections).sum();
    if let Some(descriptors) = machine.descriptors {
        let clients = if has_clients { CLIENTS_MAX } else { 0 };
        let room = (descriptors - clients.min(descriptors / 2)).saturating_sub(OWN);
        if calls > room {
            warnings.push(format!(
                "{calls} calls at once need as many file descriptors, and this process may have \
                 {descriptors}, of which {room} are for calls: allow it more (ulimit -n, or \
                 LimitNOFILE of a systemd unit), let the concurrency of all upstreams together be \
                 at most {room}, or set http2 = true where a server speaks it"
            ));
        }
    }
    let Some(ports) = machine.ports else {
        return warnings;
    };
    let mut by_address: BTreeMap<String, (u64, Vec<&str>)> = BTreeMap::new();
    for upstream in upstreams {
        let of_address = by_address.entry(address(upstream)).or_default();
        of_address.0 += connections(upstream);
        of_address.1.push(&upstream.name);
    }
    for (calls, names) in by_address.values().filter(|(calls, _)| *calls > ports) {
        warnings.push(format!(
            "{calls} calls at once to one address (upstream {}) need as many local ports, and this \
             machine has {ports}: widen net.ipv4.ip_local_port_range, lower the concurrency, or \
             set http2 = true where the server speaks it",
            names.join(", ")
        ));
    }
    warnings
}

/// Connections that an upstream's calls need at most. Over HTTP/2 it is known to be few.
fn connections(upstream: &UpstreamSettings) -> u64 {
    let calls = u64::try_from(upstream.concurrency).unwrap_or(u64::MAX);
    match upstream.http2 {
        Http2::Always => calls.div_ceil(CALLS_OF_A_CONNECTION),
        Http2::Auto | Http2::Never => calls,
    }
}

/// Where an upstream's connections lead: its host and port, or its proxy's.
fn address(upstream: &UpstreamSettings) -> String {
    let proxy = upstream.proxy.as_ref().map(ExposeSecret::expose_secret);
    let url = Url::parse(proxy.unwrap_or(&upstream.base_url)).ok();
    let address = url.and_then(|url| {
        let port = url.port_or_known_default().unwrap_or(0);
        Some(format!("{}:{port}", url.host_str()?))
    });
    address.unwrap_or_default()
}

#[cfg(target_os = "linux")]
fn ports() -> Option<u64> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = range.split_whitespace().map(|end| end.parse::<u64>().ok());
    let (first, last) = (ends.next()??, ends.next()??);
    Some((last + 1).saturating_sub(first))
}

#[cfg(not(target_os = "linux"))]
fn ports() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::testing::upstream;

    const MACHINE: Machine = Machine {
        descriptors: Some(20_000),
        ports: Some(28_232),
    };

    fn said(machine: Machine, upstreams: &[(&str, usize)]) -> Vec<String> {
        let upstreams: Vec<_> = upstreams
            .iter()
            .enumerate()
            .map(|(number, (base_url, concurrency))| UpstreamSettings {
                concurrency: *concurrency,
                ..upstream(&format!("gpu-{number}"), base_url)
            })
            .collect();
        warnings_on(machine, &upstreams, true)
    }

    #[test]
    fn what_the_machine_gives_is_enough_for_what_is_configured_by_default() {
        assert_eq!(said(MACHINE, &[("http://gpu/v1", 64)]), [""; 0]);
        let unlimited = Machine {
            descriptors: None,
            ports: None,
        };
        assert_eq!(said(unlimited, &[("http://gpu/v1", 1_000_000)]), [""; 0]);
    }

    #[test]
    fn too_few_descriptors_are_said_with_how_many_calls_there_may_be() {
        let upstreams = [("http://a/v1", 10_000), ("http://b/v1", 9_000)];
        let [warning] = &said(MACHINE, &upstreams)[..] else {
            panic!("one warning");
        };
        assert!(warning.contains("19000 calls at once"), "{warning}");
        assert!(
            warning.contains("may have 20000, of which 18848 are"),
            "{warning}"
        );
        assert!(warning.contains("allow it more (ulimit -n"), "{warning}");
        assert_eq!(said(MACHINE, &[("http://a/v1", 18_848)]), [""; 0]);
    }

    #[test]
    fn too_few_ports_to_one_address_are_said_with_the_upstreams_that_share_it() {
        let machine = Machine {
            descriptors: Some(1_000_000),
            ..MACHINE
        };
        let apart = [("http://a:8000/v1", 20_000), ("http://b:8000/v1", 20_000)];
        assert_eq!(said(machine, &apart), [""; 0]);
        let together = [("http://a:80/v1", 20_000), ("http://a/x", 20_000)];
        let [warning] = &said(machine, &together)[..] else {
            panic!("one warning");
        };
        assert!(warning.contains("(upstream gpu-0, gpu-1)"), "{warning}");
        assert!(warning.contains("machine has 28232"), "{warning}");
    }
}
