//! Which connections have a place, and which make way when places run short.
//!
//! A connection costs its client next to nothing, so places must not go to the client that opens
//! most connections. Only silent connections make way for others. A connection on which a request
//! is under way is never cut off for another one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use super::turn::Turn;

/// When places are short, one address may hold one in so many of them. As many more places are
/// reserved for questions after the process's health.
const PLACES_PER_PART: usize = 16;
/// One address may hold at least so many: a browser opens six connections.
const OF_ONE_ADDRESS_MIN: usize = 8;
/// How many bits of an IPv6 address name the network. A client can choose the bits behind them.
const IPV6_NETWORK_BITS: u8 = 64;

/// How many places there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    /// For requests of all kinds.
    ordinary: usize,
    /// Beyond them, for questions after the process's health.
    reserved: usize,
    /// Of the ordinary ones, for one address when half of them are taken.
    of_one_address: usize,
    /// A connection must have been silent for so long before it makes way: an honest client's
    /// request may just be on its way. In a reserved place it makes way at once.
    spared: Duration,
}

impl Counts {
    pub fn of(ordinary: usize, spared: Duration) -> Self {
        let part = ordinary / PLACES_PER_PART;
        Self {
            ordinary,
            reserved: part.max(1),
            of_one_address: part.max(OF_ONE_ADDRESS_MIN),
            spared,
        }
    }

    pub fn ordinary(&self) -> usize {
        self.ordinary
    }
}

/// All places of a server.
pub(super) struct Places {
    counts: Counts,
    /// Many clients stand behind each of these addresses, so each may hold any number of places.
    trusted: Vec<IpNet>,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    ordinary: BTreeMap<u64, Holder>,
    reserved: BTreeMap<u64, Holder>,
}

struct Holder {
    from: IpNet,
    turn: Turn,
    leave: CancellationToken,
}

/// A place that is held until this is dropped.
pub(super) struct Place {
    number: u64,
    /// Whether only questions after the process's health are answered here.
    pub reserved: bool,
    leave: CancellationToken,
    taken: Arc<Mutex<Taken>>,
}

impl Places {
    pub fn new(counts: Counts, trusted: Vec<IpNet>) -> Self {
        Self {
            counts,
            trusted,
            taken: Arc::default(),
        }
    }

    /// A place for a connection from this address; `None` where it must be closed.
    pub fn take(&self, address: IpAddr, turn: &Turn) -> Option<Place> {
        let from = network(address);
        let counts = &self.counts;
        let mut taken = lock(&self.taken);
        let taken = &mut *taken;
        let places = &mut taken.ordinary;
        let is_short = places.len() >= counts.ordinary / 2;
        if is_short && !self.is_trusted(address) {
            let held = places.values().filter(|holder| holder.from == from);
            if held.count() >= counts.of_one_address {
                // The connection that makes way is one of the same address.
                clear_one(places, counts.spared, |holder| holder.from == from)?;
            }
        }
        if places.len() >= counts.ordinary {
            let _ = clear_one(places, counts.spared, |_| true);
        }
        let reserved = places.len() >= counts.ordinary;
        let places = if reserved {
            &mut taken.reserved
        } else {
            places
        };
        if reserved && places.len() >= counts.reserved {
            clear_one(places, Duration::ZERO, |_| true)?;
        }
        let (number, leave) = (taken.next, CancellationToken::new());
        taken.next += 1;
        let holder = Holder {
            from,
            turn: turn.clone(),
            leave: leave.clone(),
        };
        places.insert(number, holder);
        Some(Place {
            number,
            reserved,
            leave,
            taken: Arc::clone(&self.taken),
        })
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|net| net.contains(&address))
    }
}

impl Place {
    /// Waits until the connection must make way for another one. The other one has the place by
    /// then.
    pub async fn is_needed(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        let Taken {
            ordinary, reserved, ..
        } = &mut *taken;
        let places = if self.reserved { reserved } else { ordinary };
        places.remove(&self.number);
    }
}

/// Frees the place of a connection that has been silent for at least `spared`. Connections that
/// were never used go first, and among equals the one that has been silent longest. `None` if there
/// is none.
fn clear_one(
    places: &mut BTreeMap<u64, Holder>,
    spared: Duration,
    may_go: impl Fn(&Holder) -> bool,
) -> Option<()> {
    // One time for all: otherwise the order would depend on when each is looked at.
    let now = Instant::now();
    let silent = places.iter().filter(|(_, holder)| may_go(holder));
    let silent = silent.filter_map(|(number, holder)| {
        let silent_for = holder.turn.silent_for(now).filter(|time| *time >= spared)?;
        Some(((holder.turn.is_unused(), silent_for), *number))
    });
    let (_, number) = silent.max()?;
    places.remove(&number)?.leave.cancel();
    Some(())
}

/// What counts as one address: an IPv4 address, or an IPv6 network.
fn network(address: IpAddr) -> IpNet {
    let address = address.to_canonical();
    let whole = IpNet::from(address);
    match address {
        IpAddr::V4(_) => whole,
        IpAddr::V6(_) => IpNet::new(address, IPV6_NETWORK_BITS).map_or(whole, |net| net.trunc()),
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(ordinary: usize, trusted: &[&str]) -> Places {
        let trusted = trusted.iter().map(|net| net.parse().unwrap()).collect();
        Places::new(Counts::of(ordinary, Duration::ZERO), trusted)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A connection on which a request is being worked on.
    fn busy() -> Turn {
        let turn = Turn::default();
        turn.begin();
        turn
    }

    fn nth(n: usize) -> IpAddr {
        IpAddr::from([10, 0, (n / 256) as u8, (n % 256) as u8])
    }

    #[test]
    fn one_address_cannot_have_more_than_its_part_of_the_second_half() {
        let places = places(64, &["192.0.2.0/24"]);
        let one = address("10.0.0.1");
        let half: Vec<Place> = (0..32)
            .map(|_| {
                places
                    .take(one, &busy())
                    .expect("a place of the first half")
            })
            .collect();
        assert!(places.take(one, &busy()).is_none());
        let mapped = address("::ffff:10.0.0.1");
        assert!(places.take(mapped, &busy()).is_none(), "the same address");
        // Others have the rest, each its part.
        let other = address("10.0.0.2");
        let others: Vec<_> = (0..9).map(|_| places.take(other, &busy())).collect();
        let had = others.iter().flatten().count();
        assert_eq!(had, OF_ONE_ADDRESS_MIN);
        // A proxy stands for many.
        let proxy = address("192.0.2.7");
        let proxied: Vec<_> = (0..24).map(|_| places.take(proxy, &busy())).collect();
        assert!(proxied.iter().flatten().all(|place| !place.reserved));
        assert_eq!(proxied.iter().flatten().count(), 24);
        drop(half);
        assert!(places.take(one, &busy()).is_some(), "places are given back");
    }

    #[test]
    fn networks_of_ipv6_count_as_one_address() {
        let places = places(16, &[]);
        let of = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, n, n, n, n]);
        let held: Vec<_> = (0..9).map(|n| places.take(of(n), &busy())).collect();
        assert_eq!(held.iter().flatten().count(), OF_ONE_ADDRESS_MIN);
        let next = address("2001:db8:0:2::1");
        assert!(places.take(next, &busy()).is_some());
    }

    #[test]
    fn silent_connections_of_an_address_make_way_for_its_own() {
        let places = places(16, &[]);
        let one = address("10.0.0.1");
        let mut silent: Vec<Place> = (0..8)
            .map(|_| places.take(one, &Turn::default()).expect("a place"))
            .collect();
        let next = places.take(one, &busy()).expect("a place");
        assert!(silent[0].leave.is_cancelled(), "the oldest made way");
        assert!(silent[1..].iter().all(|place| !place.leave.is_cancelled()));
        // The end of what made way frees nothing a second time.
        drop(silent.remove(0));
        assert_eq!(lock(&places.taken).ordinary.len(), 8);
        drop(next);
        assert_eq!(lock(&places.taken).ordinary.len(), 7);
    }

    #[test]
    fn silent_connections_make_way_before_anybody_is_refused() {
        let places = places(16, &["10.0.0.0/8"]);
        let silent: Vec<Place> = (0..16)
            .map(|n| places.take(nth(n), &Turn::default()).expect("a place"))
            .collect();
        let busy: Vec<Place> = (0..16)
            .map(|n| places.take(nth(n), &busy()).expect("a place"))
            .collect();
        assert!(silent.iter().all(|place| place.leave.is_cancelled()));
        assert!(busy.iter().all(|place| !place.reserved));
    }

    #[test]
    fn reserved_places_are_for_when_all_others_are_busy_and_never_stay_silent() {
        let places = places(32, &["10.0.0.0/8"]);
        let all: Vec<Place> = (0..32)
            .map(|n| places.take(nth(n), &busy()).expect("a place"))
            .collect();
        let mut silent = Vec::new();
        for n in 0..100 {
            silent.push(places.take(nth(n), &Turn::default()).expect("a place"));
        }
        assert!(silent.iter().all(|place| place.reserved));
        let kept = silent.iter().filter(|place| !place.leave.is_cancelled());
        assert_eq!(kept.count(), 2);
        drop(silent);
        let asking = [0, 1].map(|n| places.take(nth(n), &busy()));
        assert!(asking.iter().all(Option::is_some));
        assert!(places.take(nth(2), &busy()).is_none());
        drop(all);
        assert!(!places.take(nth(2), &busy()).expect("a place").reserved);
    }

    #[test]
    fn a_connection_that_has_just_come_does_not_make_way() {
        let counts = Counts::of(16, Duration::from_hours(1));
        let places = Places::new(counts, vec!["10.0.0.0/8".parse().unwrap()]);
        let held: Vec<Place> = (0..16)
            .map(|n| places.take(nth(n), &Turn::default()).expect("a place"))
            .collect();
        assert!(places.take(nth(0), &busy()).expect("a place").reserved);
        assert!(held.iter().all(|place| !place.leave.is_cancelled()));
    }

    #[test]
    fn what_was_never_used_makes_way_first() {
        let places = places(2, &["10.0.0.0/8"]);
        let used = Turn::default();
        let used_place = places.take(nth(0), &used).expect("a place");
        let unused = places.take(nth(1), &Turn::default()).expect("a place");
        used.begin();
        used.end();
        used.flushed();
        let third = places.take(nth(2), &busy()).expect("a place");
        assert!(unused.leave.is_cancelled() && !used_place.leave.is_cancelled());
        let fourth = places.take(nth(3), &busy()).expect("a place");
        assert!(used_place.leave.is_cancelled());
        assert!(!third.reserved && !fourth.reserved);
    }
}
