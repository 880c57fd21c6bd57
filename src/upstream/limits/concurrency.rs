//! How many calls at once there may be, at each upstream and of each model: in this process, which
//! may have a share of the configured limit only.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::upstream::route::LaneId;
use crate::upstream::settings::{Settings, UpstreamSettings};

/// The limits of a process. They are its own until [`share_out`](Self::share_out) is called.
#[derive(Debug)]
pub struct Limits {
    /// Those of the upstreams first, then those of the models that have one.
    all: Vec<Limit>,
    lanes: Vec<Lane>,
    shared: AtomicBool,
    /// Calls are in flight beyond a share: others wait for them.
    overhang: AtomicBool,
    news: Notify,
}

#[derive(Debug)]
struct Limit {
    name: String,
    allowed: usize,
    share: AtomicUsize,
}

#[derive(Debug)]
struct Lane {
    /// Its own limit, where it has one.
    own: Option<usize>,
    /// The upstreams that it may go to, each once: they bound it, too.
    upstreams: Vec<usize>,
    /// Lanes that have an upstream in common, directly or by others, are of one domain: their
    /// lines compete.
    domain: usize,
}

impl Limits {
    pub(in crate::upstream) fn new(settings: &Settings) -> Self {
        let upstreams = &settings.upstreams;
        let mut all: Vec<Limit> = upstreams
            .iter()
            .map(|upstream| Limit::new("upstream", &upstream.name, upstream.concurrency))
            .collect();
        let mut lanes = Vec::with_capacity(settings.models.len().max(1));
        for model in &settings.models {
            let own = model.concurrency.map(|allowed| {
                all.push(Limit::new("model", &model.name, allowed));
                all.len() - 1
            });
            let goes_to = |upstream: &UpstreamSettings| {
                let mut routes = model.routes.iter();
                routes.any(|route| route.upstream == upstream.name)
            };
            let upstreams = (0..upstreams.len()).filter(|&index| goes_to(&upstreams[index]));
            lanes.push(Lane {
                own,
                upstreams: upstreams.collect(),
                domain: 0,
            });
        }
        if settings.models.is_empty() {
            lanes.push(Lane {
                own: None,
                upstreams: (0..upstreams.len()).collect(),
                domain: 0,
            });
        }
        find_domains(&mut lanes);
        Self {
            all,
            lanes,
            shared: AtomicBool::new(false),
            overhang: AtomicBool::new(false),
            news: Notify::new(),
        }
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
        all.map(|limit| (limit.name.as_str(), limit.allowed))
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

    /// Lowers a share, at once.
    pub fn lower(&self, limit: usize, share: usize) {
        self.all[limit].share.fetch_min(share, Ordering::Relaxed);
    }

    /// Sets all shares, in the order of [`all`](Self::all). True if any has grown. With an
    /// `overhang` each call that ends is news: more are in flight than that allows.
    pub fn grant(&self, shares: &[usize], overhang: bool) -> bool {
        let mut has_grown = false;
        for (limit, &share) in self.all.iter().zip(shares) {
            has_grown |= limit.share.swap(share, Ordering::Relaxed) < share;
        }
        self.overhang.store(overhang, Ordering::Relaxed);
        has_grown
    }

    /// Calls at once that this process may make of a lane's models now.
    #[must_use]
    pub fn lane(&self, lane: LaneId) -> usize {
        self.bound(lane, |limit| limit.share.load(Ordering::Relaxed))
    }

    /// The same over all processes.
    #[must_use]
    pub fn lane_allowed(&self, lane: LaneId) -> usize {
        self.bound(lane, |limit| limit.allowed)
    }

    /// The place of a lane's own limit in [`all`](Self::all), if it has one.
    #[must_use]
    pub fn of_lane(&self, lane: LaneId) -> Option<usize> {
        self.lanes[lane.0].own
    }

    /// Which limits a lane competes for: lanes of one domain have upstreams in common.
    #[must_use]
    pub fn domain(&self, lane: LaneId) -> usize {
        self.lanes[lane.0].domain
    }

    /// Something has happened that changes what this process needs, or has let go of.
    pub fn poke(&self) {
        if self.are_shared() {
            self.news.notify_one();
        }
    }

    /// A call has ended: news where it was one too many.
    pub fn landed(&self) {
        if self.overhang.load(Ordering::Relaxed) {
            self.news.notify_one();
        }
    }

    /// Waits for news. For one listener.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    fn bound(&self, lane: LaneId, size: impl Fn(&Limit) -> usize) -> usize {
        let lane = &self.lanes[lane.0];
        let upstreams = lane.upstreams.iter().map(|&index| size(&self.all[index]));
        let together = upstreams.fold(0, usize::saturating_add);
        lane.own
            .map_or(together, |own| size(&self.all[own]).min(together))
    }
}

fn find_domains(lanes: &mut [Lane]) {
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
            allowed,
            share: AtomicUsize::new(allowed),
        }
    }
}
