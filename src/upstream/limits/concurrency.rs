//! How many calls at once this process may make: at each upstream, of each model, by each route,
//! and within each window that is found out. The process has the whole limit, or a share of it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::upstream::limits::auto::WindowSpec;
use crate::upstream::numbers::Number;
use crate::upstream::route::lane::{Lane, LaneId};
use crate::upstream::settings::{Spill, UpstreamSettings};

/// The limits of one configuration. They are the process's own until
/// [`share_out`](Self::share_out) is called.
#[derive(Debug)]
pub struct Limits {
    /// Those of the upstreams first, by their numbers; then those of the lanes, by theirs; then
    /// those of the routes, and then the windows. `None`: what has the number has no limit, or
    /// nothing has the number.
    all: Vec<Option<Limit>>,
    /// The places of the first lane's limit, of the first route's, and of the first window.
    first: [usize; 3],
    /// By their numbers. `None`: no lane that is configured has the number.
    lanes: Vec<Option<LaneLimits>>,
    sharing: Arc<Sharing>,
}

/// How this process stands with the others.
#[derive(Debug, Default)]
pub struct Sharing {
    is_shared: AtomicBool,
    /// Calls are in flight beyond a share: other processes wait for them.
    is_over_committed: AtomicBool,
    changes: Notify,
}

#[derive(Debug)]
struct Limit {
    name: String,
    /// As configured; of a window, as it is now.
    allowed: AtomicUsize,
    /// What it limits is not configured any more, and may have calls in flight.
    is_gone: bool,
    /// Of all configurations that have the limit.
    share: Arc<AtomicUsize>,
}

/// The limits that bound a lane.
#[derive(Debug)]
struct LaneLimits {
    id: LaneId,
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
    /// `upstreams`: each with its number. `before`: the limits of the configuration before, whose
    /// shares are kept.
    pub(in crate::upstream) fn new(
        upstreams: &[(usize, &UpstreamSettings)],
        lanes: &[Lane],
        windows: &[(Number, WindowSpec)],
        before: Option<&Limits>,
    ) -> Self {
        let sharing = before.map_or_else(Arc::default, |before| Arc::clone(&before.sharing));
        let mut limits = Builder::after(before, &sharing);
        for (number, upstream) in upstreams {
            limits.add(
                Kind::Upstream,
                *number,
                &upstream.name,
                upstream.concurrency,
            );
        }
        let mut of_lanes = Vec::with_capacity(lanes.len());
        for lane in lanes {
            if let Some(allowed) = lane.concurrency {
                limits.add(Kind::Lane, lane.id.index(), &lane.name, allowed);
            }
            for route in &lane.routes {
                // The routes of a task are those of its models.
                if let Some(limit) = route.limit
                    && lane.task.is_none()
                {
                    let upstream = upstreams
                        .iter()
                        .find(|(number, _)| *number == route.upstream);
                    let upstream = upstream.map_or("", |(_, upstream)| &upstream.name);
                    let name = lane.name_of(route, upstream);
                    limits.add(Kind::Route, limit.number, &name, limit.concurrency);
                }
            }
        }
        for (number, window) in windows {
            let known = before.filter(|_| !number.is_new);
            let known = known.map(|before| before.allowed(before.first[2] + number.at));
            let allowed = known.filter(|known| *known > 0);
            let allowed = allowed.map_or(window.first(), |allowed| allowed.min(window.most));
            limits.add(Kind::Window, number.at, &window.name, allowed);
        }
        let (all, first) = limits.finish();
        let limited = lanes.iter().filter(|lane| lane.concurrency.is_some());
        let own: HashMap<LaneId, usize> = limited
            .map(|lane| (lane.id, first[0] + lane.id.index()))
            .collect();
        for lane in lanes {
            let upstreams = lane.upstreams();
            let to = |upstream: &usize| {
                let routes = lane.routes.iter().filter(|one| one.upstream == *upstream);
                let limits = routes.map(|route| {
                    let of_route = route.limit.map(|limit| first[1] + limit.number);
                    let window = route.window.map(|number| first[2] + number);
                    // The calls of a task count for the limits of its models.
                    let of_model = own.get(&route.lane).copied();
                    of_route.into_iter().chain(window).chain(of_model).collect()
                });
                limits.collect()
            };
            let lowest = lane.by_tier().next().unwrap_or_default();
            let takes_any = |upstream: &usize| {
                lane.spill != Spill::Late || lowest.iter().any(|one| one.upstream == *upstream)
            };
            of_lanes.push(LaneLimits {
                id: lane.id,
                own: own.get(&lane.id).copied(),
                routes: upstreams.iter().map(to).collect(),
                takes_any: upstreams.iter().map(takes_any).collect(),
                upstreams,
                domain: 0,
            });
        }
        find_domains(&mut of_lanes);
        let count = of_lanes.iter().map(|lane| lane.id.index() + 1).max();
        let mut lanes = Vec::new();
        lanes.resize_with(count.unwrap_or(0), || None);
        for lane in of_lanes {
            let number = lane.id.index();
            lanes[number] = Some(lane);
        }
        Self {
            all,
            first,
            lanes,
            sharing,
        }
    }

    /// What bounds a lane that is configured.
    fn lane_limits(&self, lane: LaneId) -> Option<&LaneLimits> {
        self.lanes.get(lane.index())?.as_ref()
    }

    /// How this process stands with the others, whatever the configuration says.
    #[must_use]
    pub fn sharing(&self) -> &Arc<Sharing> {
        &self.sharing
    }

    /// There are other processes from now on: nothing may be sent until a share is granted.
    pub fn share_out(&self) {
        self.sharing.is_shared.store(true, Ordering::Relaxed);
        for limit in self.all.iter().flatten() {
            limit.share.store(0, Ordering::Relaxed);
        }
    }

    /// The places, names and sizes of all limits. The places of the upstreams' are their numbers.
    pub fn all(&self) -> impl Iterator<Item = (usize, &str, usize)> {
        let all = self.all.iter().enumerate();
        all.filter_map(|(place, limit)| {
            let limit = limit.as_ref()?;
            Some((place, limit.name.as_str(), limit.allowed()))
        })
    }

    /// One more than the last place of any limit.
    #[must_use]
    pub fn places(&self) -> usize {
        self.all.len()
    }

    /// Whether what a limit is of is not configured any more: only calls in flight count there.
    #[must_use]
    pub fn is_gone(&self, limit: usize) -> bool {
        let limit = self.all.get(limit).and_then(Option::as_ref);
        limit.is_none_or(|limit| limit.is_gone)
    }

    /// Whether there are other processes.
    #[must_use]
    pub fn are_shared(&self) -> bool {
        self.sharing.is_shared.load(Ordering::Relaxed)
    }

    /// This process's share of a limit, by its place in [`all`](Self::all).
    #[must_use]
    pub fn share(&self, limit: usize) -> usize {
        let limit = self.all.get(limit).and_then(Option::as_ref);
        limit.map_or(0, Limit::share)
    }

    /// How large a limit is at present, by its place in [`all`](Self::all).
    #[must_use]
    pub fn allowed(&self, limit: usize) -> usize {
        let limit = self.all.get(limit).and_then(Option::as_ref);
        limit.map_or(0, Limit::allowed)
    }

    /// Lowers a share, at once.
    pub fn lower(&self, limit: usize, share: usize) {
        if let Some(limit) = self.all.get(limit).and_then(Option::as_ref) {
            limit.share.fetch_min(share, Ordering::Relaxed);
        }
    }

    /// Sets shares, each with its place in [`all`](Self::all). True if any share has grown. Where
    /// the process is `over_committed`, more calls are in flight than its shares allow, and the end
    /// of each is a change that [`Sharing::changed`] reports.
    pub fn grant(&self, shares: &[(usize, usize)], over_committed: bool) -> bool {
        let mut has_grown = false;
        for (place, share) in shares {
            if let Some(limit) = self.all.get(*place).and_then(Option::as_ref) {
                has_grown |= limit.share.swap(*share, Ordering::Relaxed) < *share;
            }
        }
        let is_over_committed = &self.sharing.is_over_committed;
        is_over_committed.store(over_committed, Ordering::Relaxed);
        has_grown
    }

    /// Calls at once that this process may make of a lane's models now.
    #[must_use]
    pub fn lane(&self, lane: LaneId) -> usize {
        self.bound(lane, |place| self.share(place), |_| true)
    }

    /// The same without the upstreams to which lines go only where they would be late otherwise.
    #[must_use]
    pub fn lane_unspilled(&self, lane: LaneId) -> usize {
        let takes_any = self.lane_limits(lane).map(|lane| &lane.takes_any);
        let counts = |place: usize| takes_any.is_some_and(|takes_any| takes_any[place]);
        self.bound(lane, |place| self.share(place), counts)
    }

    /// The same over all processes.
    #[must_use]
    pub fn lane_allowed(&self, lane: LaneId) -> usize {
        self.bound(lane, |place| self.allowed(place), |_| true)
    }

    /// The place of a lane's own limit in [`all`](Self::all), if it has one, or had one under which
    /// calls may be in flight.
    #[must_use]
    pub fn of_lane(&self, lane: LaneId) -> Option<usize> {
        let place = self.first[0] + lane.index();
        let has_limit = place < self.first[1] && self.all[place].is_some();
        has_limit.then_some(place)
    }

    /// The same of a limit that is configured: it bounds the lane.
    pub(in crate::upstream) fn configured_of_lane(&self, lane: LaneId) -> Option<usize> {
        self.lane_limits(lane)?.own
    }

    /// Where the limits of the upstreams are in [`all`](Self::all).
    #[must_use]
    pub fn upstreams(&self) -> Range<usize> {
        0..self.first[0]
    }

    /// Calls at once that this process may make by the limit of a model's own lane. `None`: it has
    /// none.
    pub(in crate::upstream) fn of_model(&self, lane: LaneId) -> Option<usize> {
        let Some(lane) = self.lane_limits(lane) else {
            // It is not configured any more.
            return Some(0);
        };
        lane.own.map(|own| self.share(own))
    }

    /// Where the limits of the lanes are in [`all`](Self::all).
    #[must_use]
    pub fn lanes(&self) -> Range<usize> {
        self.first[0]..self.first[1]
    }

    /// Where the limits of the routes are in [`all`](Self::all).
    #[must_use]
    pub fn routes(&self) -> Range<usize> {
        self.first[1]..self.first[2]
    }

    /// Where the windows are in [`all`](Self::all).
    #[must_use]
    pub fn windows(&self) -> Range<usize> {
        self.first[2]..self.all.len()
    }

    /// Calls at once that this process may make within a window, by the window's number.
    #[must_use]
    pub fn of_window(&self, number: usize) -> usize {
        self.share(self.first[2] + number)
    }

    /// A window is as large from now on. Where there are no other processes, this one has all of
    /// it.
    pub(in crate::upstream) fn resize_window(&self, number: usize, allowed: usize) {
        let place = self.first[2] + number;
        if let Some(window) = self.all.get(place).and_then(Option::as_ref) {
            window.allowed.store(allowed, Ordering::Relaxed);
            if !self.are_shared() {
                window.share.store(allowed, Ordering::Relaxed);
            }
        }
    }

    /// Calls at once that this process may make by a route, by the number of the route's limit.
    #[must_use]
    pub fn of_route(&self, number: usize) -> usize {
        self.share(self.first[1] + number)
    }

    /// Which limits a lane competes for: lanes of one domain have upstreams in common.
    #[must_use]
    pub fn domain(&self, lane: LaneId) -> usize {
        self.lane_limits(lane).map_or(0, |lane| lane.domain)
    }

    /// What the limits of a lane let through, at those of its upstreams that `counts` names by
    /// their place in the lane.
    fn bound(
        &self,
        lane: LaneId,
        size: impl Fn(usize) -> usize,
        counts: impl Fn(usize) -> bool,
    ) -> usize {
        let Some(lane) = self.lane_limits(lane) else {
            return 0;
        };
        let upstreams = lane.upstreams.iter().zip(&lane.routes).enumerate();
        let upstreams = upstreams.filter(|(place, _)| counts(*place));
        let upstreams = upstreams.map(|(_, (&upstream, routes))| {
            let by_routes = routes.iter().map(|limits| {
                let limits = limits.iter().map(|&limit| size(limit));
                limits.min().unwrap_or(usize::MAX)
            });
            let by_routes = by_routes.fold(0, usize::saturating_add);
            size(upstream).min(by_routes)
        });
        let together = upstreams.fold(0, usize::saturating_add);
        lane.own.map_or(together, |own| size(own).min(together))
    }
}

impl Sharing {
    /// What this process needs has changed, or what it has given up.
    pub fn notify_changed(&self) {
        if self.is_shared.load(Ordering::Relaxed) {
            self.changes.notify_one();
        }
    }

    /// A call has ended: a change where the process is over-committed.
    pub fn on_finish(&self) {
        if self.is_over_committed.load(Ordering::Relaxed) {
            self.changes.notify_one();
        }
    }

    /// Waits for a change. For one listener.
    pub async fn changed(&self) {
        self.changes.notified().await;
    }
}

/// What a limit is of.
#[derive(Clone, Copy)]
enum Kind {
    Upstream,
    Lane,
    Route,
    Window,
}

/// The limits of a configuration while they are gathered.
struct Builder {
    by_kind: [Vec<Option<Limit>>; 4],
    /// By name.
    shares: HashMap<String, Arc<AtomicUsize>>,
    are_shared: bool,
}

impl Builder {
    /// Begins with what was there before, as if all of it were gone.
    fn after(before: Option<&Limits>, sharing: &Sharing) -> Self {
        let all = before.map_or(&[][..], |before| &before.all);
        let [lanes, routes, windows] = before.map_or([0; 3], |before| before.first);
        let gone = |limits: &[Option<Limit>]| {
            let limits = limits.iter().map(Option::as_ref);
            limits.map(|limit| limit.map(Limit::gone)).collect()
        };
        let named = all.iter().flatten();
        let named = named.map(|limit| (limit.name.clone(), Arc::clone(&limit.share)));
        Self {
            by_kind: [
                gone(&all[..lanes]),
                gone(&all[lanes..routes]),
                gone(&all[routes..windows]),
                gone(&all[windows..]),
            ],
            shares: named.collect(),
            are_shared: sharing.is_shared.load(Ordering::Relaxed),
        }
    }

    fn add(&mut self, kind: Kind, number: usize, name: &str, allowed: usize) {
        let what = match kind {
            Kind::Upstream => "upstream",
            Kind::Lane => "model",
            Kind::Route => "route",
            Kind::Window => "window",
        };
        let name = format!("{what}:{name}");
        let share = self.shares.get(&name).cloned().unwrap_or_default();
        if !self.are_shared {
            share.store(allowed, Ordering::Relaxed);
        }
        let limits = &mut self.by_kind[kind as usize];
        for limit in limits.iter_mut() {
            // Whoever has the name has the share: an upstream that has got other keys.
            limit.take_if(|limit| limit.is_gone && limit.name == name);
        }
        if limits.len() <= number {
            limits.resize_with(number + 1, || None);
        }
        limits[number] = Some(Limit {
            name,
            allowed: AtomicUsize::new(allowed),
            is_gone: false,
            share,
        });
    }

    /// All limits, and where those of the lanes and of the routes begin, and the windows.
    fn finish(self) -> (Vec<Option<Limit>>, [usize; 3]) {
        let [upstreams, lanes, routes, _] = &self.by_kind;
        let first_route = upstreams.len() + lanes.len();
        let first = [upstreams.len(), first_route, first_route + routes.len()];
        (self.by_kind.into_iter().flatten().collect(), first)
    }
}

fn find_domains(lanes: &mut [LaneLimits]) {
    let mut domains: Vec<(usize, Vec<usize>)> = Vec::new();
    for lane in &*lanes {
        let meets = |upstreams: &[usize]| upstreams.iter().any(|one| lane.upstreams.contains(one));
        let (met, mut others): (Vec<_>, Vec<_>) = domains
            .into_iter()
            .partition(|(_, upstreams)| meets(upstreams));
        let mut merged = (lane.id.index(), lane.upstreams.clone());
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
    fn share(&self) -> usize {
        if self.is_gone {
            return 0;
        }
        // The share may be of a configuration that allowed more.
        self.share.load(Ordering::Relaxed).min(self.allowed())
    }

    fn allowed(&self) -> usize {
        self.allowed.load(Ordering::Relaxed)
    }

    /// A limit whose owner is not configured any more.
    fn gone(&self) -> Limit {
        Limit {
            name: self.name.clone(),
            allowed: AtomicUsize::new(self.allowed()),
            is_gone: true,
            share: Arc::clone(&self.share),
        }
    }
}
