//! How many calls at once this process may make: at each upstream, of each model, by each route,
//! and within each window that is found out. The process has the whole limit, or a share of it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::upstream::limits::auto::WindowSpec;
use crate::upstream::route::lane::{Lane, LaneId};
use crate::upstream::settings::{Spill, UpstreamSettings};

/// The limits of a process. They are its own until [`share_out`](Self::share_out) is called.
#[derive(Debug)]
pub struct Limits {
    /// Those of the upstreams first, then those of the models that have one, then those of the
    /// routes that have one, and then the windows.
    all: Vec<Limit>,
    /// The places of the first route's limit, and of the first window.
    routes: usize,
    windows: usize,
    /// By lane.
    lanes: Vec<LaneLimits>,
    shared: AtomicBool,
    /// Calls are in flight beyond a share: other processes wait for them.
    over_committed: AtomicBool,
    changes: Notify,
}

#[derive(Debug)]
struct Limit {
    name: String,
    /// As configured; of a window, as it is now.
    allowed: AtomicUsize,
    share: AtomicUsize,
}

/// The limits that bound a lane.
#[derive(Debug)]
struct LaneLimits {
    id: LaneId,
    name: String,
    /// The place of the lane's own limit, where it has one.
    own: Option<usize>,
    /// The upstreams that the lane may go to, each once: their limits bound the lane, too.
    upstreams: Vec<usize>,
    /// For each of these upstreams, and each of the lane's routes to it, the limits that bound the
    /// route.
    routes: Vec<Vec<Vec<usize>>>,
    /// For each of these upstreams, whether it takes lines that would not be late.
    takes_any: Vec<bool>,
    /// Lanes that have an upstream in common, directly or through other lanes, are of one domain:
    /// their lines compete.
    domain: usize,
}

impl Limits {
    pub(in crate::upstream) fn new(
        upstreams: &[UpstreamSettings],
        lanes: &[Lane],
        windows: &[WindowSpec],
    ) -> Self {
        let mut all: Vec<Limit> = upstreams
            .iter()
            .map(|upstream| Limit::new("upstream", &upstream.name, upstream.concurrency))
            .collect();
        let of_lanes = lanes.iter().map(|lane| LaneLimits {
            id: lane.id,
            name: lane.name.clone(),
            own: lane.concurrency.map(|allowed| {
                all.push(Limit::new("model", &lane.name, allowed));
                all.len() - 1
            }),
            upstreams: lane.upstreams(),
            routes: Vec::new(),
            takes_any: Vec::new(),
            domain: 0,
        });
        let mut of_lanes: Vec<LaneLimits> = of_lanes.collect();
        let first_route = all.len();
        let of_models = lanes.iter().filter(|lane| lane.task.is_none());
        let routes = of_models.flat_map(|lane| &lane.routes);
        let first_window = first_route + routes.filter(|route| route.limit.is_some()).count();
        let own_limits: Vec<Option<usize>> = of_lanes.iter().map(|limits| limits.own).collect();
        for (lane, limits) in lanes.iter().zip(&mut of_lanes) {
            let to = |upstream: &usize| {
                let routes = lane.routes.iter().filter(|one| one.upstream == *upstream);
                let limits = routes.map(|route| {
                    let own = route.limit.map(|limit| first_route + limit.number);
                    let window = route.window.map(|number| first_window + number);
                    // The calls of a task count for the limits of its models.
                    let of_model = own_limits[route.lane.index()];
                    own.into_iter().chain(window).chain(of_model).collect()
                });
                limits.collect()
            };
            limits.routes = limits.upstreams.iter().map(to).collect();
            let lowest = lane.tiers().next().unwrap_or_default();
            let takes_any = |upstream: &usize| {
                lane.spill != Spill::Late || lowest.iter().any(|one| one.upstream == *upstream)
            };
            limits.takes_any = limits.upstreams.iter().map(takes_any).collect();
            for route in &lane.routes {
                // The routes of a task are those of its models.
                if let Some(limit) = route.limit
                    && lane.task.is_none()
                {
                    let name = lane.name_of(route, &upstreams[route.upstream].name);
                    all.push(Limit::new("route", &name, limit.concurrency));
                }
            }
        }
        for window in windows {
            all.push(Limit::new("window", &window.name, window.first()));
        }
        find_domains(&mut of_lanes);
        Self {
            all,
            routes: first_route,
            windows: first_window,
            lanes: of_lanes,
            shared: AtomicBool::new(false),
            over_committed: AtomicBool::new(false),
            changes: Notify::new(),
        }
    }

    /// All lanes in their order, each with what the configuration calls it.
    pub fn lanes(&self) -> impl Iterator<Item = (LaneId, &str)> {
        let lanes = self.lanes.iter();
        lanes.map(|lane| (lane.id, lane.name.as_str()))
    }

    /// There are other processes from now on: nothing may be sent until a share is granted.
    pub fn share_out(&self) {
        self.shared.store(true, Ordering::Relaxed);
        for limit in &self.all {
            limit.share.store(0, Ordering::Relaxed);
        }
    }

    /// The names and sizes of all limits; the first are the upstreams', in their order.
    pub fn all(&self) -> impl Iterator<Item = (&str, usize)> {
        let all = self.all.iter();
        all.map(|limit| (limit.name.as_str(), limit.allowed()))
    }

    /// Whether there are other processes.
    #[must_use]
    pub fn are_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }

    /// This process's share of a limit, by its place in [`all`](Self::all).
    #[must_use]
    pub fn share(&self, limit: usize) -> usize {
        self.all[limit].share.load(Ordering::Relaxed)
    }

    /// How large a limit is at present, by its place in [`all`](Self::all).
    #[must_use]
    pub fn allowed(&self, limit: usize) -> usize {
        self.all[limit].allowed()
    }

    /// Lowers a share, at once.
    pub fn lower(&self, limit: usize, share: usize) {
        self.all[limit].share.fetch_min(share, Ordering::Relaxed);
    }

    /// Sets all shares, in the order of [`all`](Self::all). True if any share has grown. Where the
    /// process is `over_committed`, more calls are in flight than its shares allow, and the end of
    /// each is a change that [`changed`](Self::changed) reports.
    pub fn grant(&self, shares: &[usize], over_committed: bool) -> bool {
        let mut has_grown = false;
        for (limit, &share) in self.all.iter().zip(shares) {
            has_grown |= limit.share.swap(share, Ordering::Relaxed) < share;
        }
        self.over_committed.store(over_committed, Ordering::Relaxed);
        has_grown
    }

    /// Calls at once that this process may make of a lane's models now.
    #[must_use]
    pub fn lane(&self, lane: LaneId) -> usize {
        self.bound(lane, |limit| limit.share.load(Ordering::Relaxed), |_| true)
    }

    /// The same without the upstreams to which lines go only where they would be late otherwise.
    #[must_use]
    pub fn lane_unspilled(&self, lane: LaneId) -> usize {
        let takes_any = &self.lanes[lane.index()].takes_any;
        self.bound(
            lane,
            |limit| limit.share.load(Ordering::Relaxed),
            |place| takes_any[place],
        )
    }

    /// The same over all processes.
    #[must_use]
    pub fn lane_allowed(&self, lane: LaneId) -> usize {
        self.bound(lane, Limit::allowed, |_| true)
    }

    /// The place of a lane's own limit in [`all`](Self::all), if it has one.
    #[must_use]
    pub fn of_lane(&self, lane: LaneId) -> Option<usize> {
        self.lanes[lane.index()].own
    }

    /// Where the limits of the routes are in [`all`](Self::all).
    #[must_use]
    pub fn routes(&self) -> Range<usize> {
        self.routes..self.windows
    }

    /// Where the windows are in [`all`](Self::all).
    #[must_use]
    pub fn windows(&self) -> Range<usize> {
        self.windows..self.all.len()
    }

    /// Calls at once that this process may make by a route, by the number of the route's limit.
    #[must_use]
    pub fn of_route(&self, number: usize) -> usize {
        self.share(self.routes + number)
    }

    /// Calls at once that this process may make within a window, by the window's number.
    #[must_use]
    pub fn of_window(&self, number: usize) -> usize {
        self.share(self.windows + number)
    }

    /// A window is as large from now on. Where there are no other processes, this one has all of
    /// it.
    pub(in crate::upstream) fn resize_window(&self, number: usize, allowed: usize) {
        let window = &self.all[self.windows + number];
        window.allowed.store(allowed, Ordering::Relaxed);
        if !self.are_shared() {
            window.share.store(allowed, Ordering::Relaxed);
        }
    }

    /// Which limits a lane competes for: lanes of one domain have upstreams in common.
    #[must_use]
    pub fn domain(&self, lane: LaneId) -> usize {
        self.lanes[lane.index()].domain
    }

    /// What this process needs has changed, or what it has given up.
    pub fn notify_changed(&self) {
        if self.are_shared() {
            self.changes.notify_one();
        }
    }

    /// A call has ended: a change where the process is over-committed.
    pub fn on_finish(&self) {
        if self.over_committed.load(Ordering::Relaxed) {
            self.changes.notify_one();
        }
    }

    /// Waits for a change. For one listener.
    pub async fn changed(&self) {
        self.changes.notified().await;
    }

    /// What the limits of a lane let through, at those of its upstreams that `counts` names by
    /// their place in the lane.
    fn bound(
        &self,
        lane: LaneId,
        size: impl Fn(&Limit) -> usize,
        counts: impl Fn(usize) -> bool,
    ) -> usize {
        let lane = &self.lanes[lane.index()];
        let upstreams = lane.upstreams.iter().zip(&lane.routes).enumerate();
        let upstreams = upstreams.filter(|(place, _)| counts(*place));
        let upstreams = upstreams.map(|(_, (&index, routes))| {
            let by_routes = routes.iter().map(|limits| {
                let limits = limits.iter().map(|&limit| size(&self.all[limit]));
                limits.min().unwrap_or(usize::MAX)
            });
            let by_routes = by_routes.fold(0, usize::saturating_add);
            size(&self.all[index]).min(by_routes)
        });
        let together = upstreams.fold(0, usize::saturating_add);
        lane.own
            .map_or(together, |own| size(&self.all[own]).min(together))
    }
}

fn find_domains(lanes: &mut [LaneLimits]) {
    let mut domains: Vec<(usize, Vec<usize>)> = Vec::new();
    for (number, lane) in lanes.iter().enumerate() {
        let meets = |upstreams: &[usize]| upstreams.iter().any(|one| lane.upstreams.contains(one));
        let (met, mut others): (Vec<_>, Vec<_>) = domains
            .into_iter()
            .partition(|(_, upstreams)| meets(upstreams));
        let mut merged = (number, lane.upstreams.clone());
        for (first, upstreams) in met {
            merged.0 = merged.0.min(first);
            merged.1.extend(upstreams);
        }
        others.push(merged);
        domains = others;
    }
    for lane in lanes {
        let of_lane = |(_, upstreams): &&(usize, Vec<usize>)| {
            lane.upstreams.iter().any(|one| upstreams.contains(one))
        };
        lane.domain = domains.iter().find(of_lane).map_or(0, |(first, _)| *first);
    }
}

impl Limit {
    fn new(kind: &str, name: &str, allowed: usize) -> Self {
        Self {
            name: format!("{kind}:{name}"),
            allowed: AtomicUsize::new(allowed),
            share: AtomicUsize::new(allowed),
        }
    }

    fn allowed(&self) -> usize {
        self.allowed.load(Ordering::Relaxed)
    }
}
