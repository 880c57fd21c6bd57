//! Very many calls in flight, beside a bare loop of that width.

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Bench, Section, dispatch};
use crate::results::{Point, System};

const IN_FLIGHT: u64 = 15_000;
const LATENCY_MS: u64 = 10_000;
const QUICK_IN_FLIGHT: u64 = 1500;
const QUICK_LATENCY_MS: u64 = 1000;
/// How often each place in flight is taken.
const CALLS: u64 = 2;
/// Files and ports beside those of the calls.
const SPARE: u64 = 1000;

pub async fn run(bench: &mut Bench) -> Result<()> {
    let (in_flight, latency_ms) = match bench.quick {
        true => (QUICK_IN_FLIGHT, QUICK_LATENCY_MS),
        false => (IN_FLIGHT, LATENCY_MS),
    };
    if let Some(obstacle) = obstacle(in_flight + SPARE)? {
        return bench.skip(Section::Wide, obstacle);
    }
    let point = Point {
        latency_ms,
        in_flight,
        lines: in_flight * CALLS,
        ..Point::BASE
    };
    let mut systems = bench.world.engines.clone();
    systems.push(System::HyperFloor);
    dispatch::compare(bench, Section::Wide, point, &systems, 0..bench.rounds).await
}

/// Lets this process, and those that it starts, open so many files. Returns why so many connections
/// cannot be opened here, if so.
fn obstacle(connections: u64) -> Result<Option<String>> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|files| files < connections) {
        let raised = Rlimit {
            current: Some(connections),
            // Beyond the hard limit only root can go.
            maximum: limit.maximum.map(|files| files.max(connections)),
        };
        if setrlimit(Resource::Nofile, raised).is_err() {
            let files = limit.maximum.unwrap_or_default();
            return Ok(Some(format!(
                "a process may open {files} files here (`ulimit -Hn`), and {connections} are needed"
            )));
        }
    }
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let mut ports = range.split_whitespace().map(str::parse::<u64>);
    let first = ports.next().context("there is no first port")??;
    let last = ports.next().context("there is no last port")??;
    let ports = (last + 1).saturating_sub(first);
    Ok((ports < connections).then(|| {
        format!(
            "there are {ports} ports for connections (`net.ipv4.ip_local_port_range`), and \
             {connections} are needed"
        )
    }))
}
