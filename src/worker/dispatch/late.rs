//! Which lines may go to a tier that has to be paid for, where a model's `spill` is `late`: those
//! lines of a batch that the lowest tier would not send in time, and no others.
//!
//! Each lane is judged by tenant. The rate is what the lowest tier has answered of the tenant's
//! lines while some of them waited for a place. So it has in it whatever bounds the tenant: places,
//! rate limits, outages, other tenants. Batches are taken by the ends of their windows, because
//! that is how a tenant's batches are rescued. What exceeds the rate in the time that is left is a
//! batch's *deficit*. A batch with a deficit is *late*, and its *allowance* grows until all of the
//! deficit may go to the next tier in half of that time.
//!
//! Pure: every time is an argument. The ledger owns the one [`Lateness`] of a process.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::upstream::LaneId;

/// A batch becomes late where its lines exceed by so much what can be done in time. It is not late
/// any more once they do not exceed that at all.
const LATE_FROM: f64 = 1.05;
/// The deficit is paid for in the time that is left, divided by this. What is left of the time is
/// for what the estimate gets wrong.
const PACE: f64 = 2.0;
/// The rate is measured over this part of the time that is left,
const MEASURED_PART: f64 = 0.1;
/// and over so many seconds,
const MEASURED_MIN: f64 = 2.0;
const MEASURED_MAX: f64 = 600.0;
/// and over so many answers, and so many for each call in flight: calls that begin together are
/// answered together,
const MEASURED_ANSWERS: usize = 32;
const MEASURED_FLIGHTS: usize = 2;
/// but over no longer than so many slow calls take, one after the other. Where nothing was answered
/// yet, over no longer than what is left.
const MEASURED_CALLS: f64 = 8.0;
/// A sample of the rate is so long at least, in seconds.
const SAMPLE: f64 = 1.0;
/// A call is taken to last so many times as long as the slowest of the latest.
const SLOWEST: f64 = 1.1;
/// The latest calls by which latencies are judged.
const LATENCIES_MAX: usize = 128;
/// Judgements are at least so far apart,
const JUDGED_EVERY_MIN: Duration = Duration::from_millis(200);
/// and at most so far, and this part of the time that is left.
const JUDGED_EVERY_MAX: Duration = Duration::from_secs(1);
const JUDGED_PART: u32 = 100;
/// An allowance grows for so long at most from one judgement to the next.
const GROWS_FOR_MAX: Duration = Duration::from_secs(2);
/// Of a tenant that has no lines any more nothing is remembered after this time.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);

/// What may go to the next tier, by lane and tenant.
#[derive(Default)]
pub(crate) struct Lateness {
    flows: BTreeMap<(LaneId, Arc<str>), Flow>,
}

/// A batch with lines that were not sent yet, in one lane.
#[derive(Clone, Debug)]
pub(crate) struct OpenBatch {
    pub id: Arc<str>,
    /// Lines that this process is to send: those in hand, and its part of those that nobody holds.
    pub lines: f64,
    /// Until the batch's window ends.
    pub left: Duration,
}

/// How a tenant's lines stand in a lane when they are judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub now: Instant,
    /// Lines wait for a place; or all of them wait for their next attempt, so that none is
    /// answered.
    pub is_waiting: bool,
    /// Lines in flight at the lowest tier.
    pub in_flight: usize,
}

/// What was decided of a batch, for those who read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub lane: LaneId,
    pub tenant: Arc<str>,
    pub batch: Arc<str>,
    pub is_late: bool,
    /// Lines that the lowest tier would not send in time.
    pub deficit: f64,
    /// Lines that were judged.
    pub lines: f64,
    /// Lines a second that the lowest tier answers of the tenant.
    pub rate: f64,
    /// How long a call of the lowest tier takes at the 95th percentile.
    pub latency: Duration,
    pub left: Duration,
    /// Lines that went to a higher tier so far.
    pub spilled: u64,
}

/// A tenant's lines in a lane.
#[derive(Default)]
struct Flow {
    /// Answers of the lowest tier since the last judgement.
    answers: u32,
    rate: RateMeter,
    lowest: Latencies,
    higher: Latencies,
    judged_at: Option<Instant>,
    /// Whether lines waited for a place when the flow was judged last.
    was_waiting: bool,
    /// When lines were there last.
    seen_at: Option<Instant>,
    batches: HashMap<Arc<str>, Judged>,
}

#[derive(Clone, Debug, Default)]
struct Judged {
    is_late: bool,
    /// So many lines may go to a higher tier now.
    allowance: f64,
    deficit: f64,
    lines: f64,
    rate: f64,
    left: Duration,
    spilled: u64,
    /// All that may be paid for goes now.
    is_up: bool,
    /// The same was told by [`Lateness::take_up`].
    is_told: bool,
}

impl Lateness {
    /// A line has its outcome after a call that took so long. `is_spilled`: by a higher tier.
    pub(crate) fn on_finish(
        &mut self,
        lane: LaneId,
        tenant: &Arc<str>,
        took: Duration,
        is_spilled: bool,
    ) {
        let flow = self.flows.entry((lane, Arc::clone(tenant))).or_default();
        if is_spilled {
            flow.higher.add(took);
        } else {
            flow.lowest.add(took);
            flow.answers += 1;
        }
    }

    /// A line of a batch goes to a higher tier.
    pub(crate) fn on_spill(&mut self, lane: LaneId, tenant: &Arc<str>, batch: &str) {
        let flow = self.flows.get_mut(&(lane, Arc::clone(tenant)));
        if let Some(judged) = flow.and_then(|flow| flow.batches.get_mut(batch)) {
            judged.allowance = (judged.allowance - 1.0).max(0.0);
            judged.spilled += 1;
        }
    }

    /// Whether a line of any of the tenant's batches may go to a higher tier.
    pub(crate) fn allows_any(&self, lane: LaneId, tenant: &Arc<str>) -> bool {
        let flow = self.flows.get(&(lane, Arc::clone(tenant)));
        flow.is_some_and(|flow| flow.batches.values().any(Judged::allows))
    }

    /// Whether a line of a batch may go to a higher tier.
    pub(crate) fn allows(&self, lane: LaneId, tenant: &Arc<str>, batch: &str) -> bool {
        let flow = self.flows.get(&(lane, Arc::clone(tenant)));
        let judged = flow.and_then(|flow| flow.batches.get(batch));
        judged.is_some_and(Judged::allows)
    }

    /// How many lines of a batch may go to a higher tier.
    pub(crate) fn allowed(&self, lane: LaneId, tenant: &Arc<str>, batch: &str) -> usize {
        let flow = self.flows.get(&(lane, Arc::clone(tenant)));
        let judged = flow.and_then(|flow| flow.batches.get(batch));
        judged.map_or(0, |judged| judged.allowance as usize)
    }

    /// Judges a tenant's batches in a lane. Returns the verdicts that have changed: batches that
    /// became late, and those that are not late any more.
    pub(crate) fn judge(
        &mut self,
        lane: LaneId,
        tenant: &Arc<str>,
        open: Vec<OpenBatch>,
        moment: Moment,
    ) -> Vec<Verdict> {
        let flow = self.flows.entry((lane, Arc::clone(tenant))).or_default();
        let changed = flow.judge(open, moment).into_iter();
        changed
            .map(|(id, judged)| flow.verdict(lane, tenant, &id, &judged))
            .collect()
    }

    /// No line is left to send but in these lanes of these tenants. Returns the verdicts that have
    /// changed: batches that were late.
    pub(crate) fn leave_all_but(
        &mut self,
        is_left: impl Fn(&(LaneId, Arc<str>)) -> bool,
    ) -> Vec<Verdict> {
        let mut changed = Vec::new();
        let flows = self.flows.iter_mut();
        for (key, flow) in flows.filter(|(key, flow)| !flow.batches.is_empty() && !is_left(key)) {
            let late = gone(std::mem::take(&mut flow.batches));
            let (lane, tenant) = key;
            changed.extend(late.map(|(id, judged)| flow.verdict(*lane, tenant, &id, &judged)));
        }
        changed
    }

    /// The batches, each by its lane, of which all that may be paid for goes from now on. Each is
    /// told once.
    pub(crate) fn take_up(&mut self) -> HashSet<(LaneId, Arc<str>)> {
        let mut up = HashSet::new();
        for ((lane, _), flow) in &mut self.flows {
            for (id, judged) in &mut flow.batches {
                if judged.is_up && !std::mem::replace(&mut judged.is_told, true) {
                    up.insert((*lane, Arc::clone(id)));
                }
            }
        }
        up
    }

    /// Forgets tenants that have had no lines for long.
    pub(crate) fn forget(&mut self, now: Instant) {
        self.flows.retain(|_, flow| {
            let seen_at = *flow.seen_at.get_or_insert(now);
            now.saturating_duration_since(seen_at) < FORGOTTEN_AFTER
        });
    }

    /// Every batch that is late, or of which lines went to a higher tier, in no order.
    pub(crate) fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        self.flows.iter().flat_map(|((lane, tenant), flow)| {
            let told = flow.batches.iter();
            let told = told.filter(|(_, judged)| judged.is_late || judged.spilled > 0);
            told.map(|(id, judged)| flow.verdict(*lane, tenant, id, judged))
        })
    }

    /// When to judge again, at the latest.
    pub(crate) fn judged_every(&self) -> Duration {
        let batches = self.flows.values().flat_map(|flow| flow.batches.values());
        let soonest = batches.map(|judged| judged_every(judged.left)).min();
        soonest.unwrap_or(JUDGED_EVERY_MAX)
    }

    /// Whether any line may go to a higher tier.
    pub(crate) fn allows_some(&self) -> bool {
        let mut batches = self.flows.values().flat_map(|flow| flow.batches.values());
        batches.any(Judged::allows)
    }
}

impl Flow {
    /// Judges the batches. Returns those whose verdict has changed.
    fn judge(&mut self, mut open: Vec<OpenBatch>, moment: Moment) -> Vec<(Arc<str>, Judged)> {
        let Moment {
            now,
            is_waiting,
            in_flight,
        } = moment;
        let since = self.judged_at.map(|at| now.saturating_duration_since(at));
        if since.is_some_and(|since| since < JUDGED_EVERY_MIN) {
            return Vec::new();
        }
        self.judged_at = Some(now);
        if !open.is_empty() {
            self.seen_at = Some(now);
        }
        let answers = std::mem::take(&mut self.answers);
        let was_waiting = std::mem::replace(&mut self.was_waiting, is_waiting);
        // Where no line waited, the tenant could have sent more.
        if let Some(since) = since.filter(|_| was_waiting && is_waiting) {
            self.rate.add(since.as_secs_f64(), answers);
        }
        let grows_for = since.unwrap_or_default().min(GROWS_FOR_MAX);

        let (latency, slowest) = self.lowest.slow();
        let (_, of_higher) = self.higher.slow();
        open.sort_by_key(|batch| batch.left);
        let (mut work, mut changed) = (0.0, Vec::new());
        let mut before = std::mem::take(&mut self.batches);
        for OpenBatch { id, lines, left } in open {
            let mut judged = before.remove(&id).unwrap_or_default();
            // Until the next judgement.
            let safe = left.saturating_sub(judged_every(left));
            // Calls that began together end together: the last one may begin a call's time late.
            let left_to_begin = safe.saturating_sub(slowest + latency).as_secs_f64();
            let goes_at_once = safe <= latency;
            let rate = self
                .rate
                .rate(left.as_secs_f64(), latency.as_secs_f64(), in_flight);
            work += lines;
            let capacity = match rate {
                _ if goes_at_once => 0.0,
                Some(rate) => rate * left_to_begin,
                // Nothing is known yet.
                None => f64::INFINITY,
            };
            // A line is paid for as a whole.
            let deficit = (work - capacity).max(0.0).ceil().min(lines);
            let was_late = judged.is_late;
            judged.is_late = deficit > 0.0 && (was_late || work > capacity * LATE_FROM);
            work = if judged.is_late {
                work - deficit
            } else {
                work.min(capacity)
            };
            judged.deficit = deficit;
            judged.lines = lines;
            judged.rate = rate.unwrap_or(0.0);
            judged.left = left;
            let left_to_pay = safe.saturating_sub(of_higher).as_secs_f64();
            let is_too_late = left <= of_higher;
            judged.is_up = judged.is_late && (goes_at_once || left_to_pay <= 0.0);
            judged.is_told &= judged.is_up;
            judged.allowance = if !judged.is_late || is_too_late && !goes_at_once {
                0.0
            } else if judged.is_up {
                deficit
            } else {
                let pace = PACE * deficit / left_to_pay;
                (judged.allowance + pace * grows_for.as_secs_f64()).min(deficit)
            };
            if judged.is_late != was_late {
                changed.push((Arc::clone(&id), judged.clone()));
            }
            self.batches.insert(id, judged);
        }
        changed.extend(gone(before));
        changed
    }

    fn verdict(&self, lane: LaneId, tenant: &Arc<str>, id: &Arc<str>, judged: &Judged) -> Verdict {
        Verdict {
            lane,
            tenant: Arc::clone(tenant),
            batch: Arc::clone(id),
            is_late: judged.is_late,
            deficit: judged.deficit,
            lines: judged.lines,
            rate: judged.rate,
            latency: self.lowest.slow().0,
            left: judged.left,
            spilled: judged.spilled,
        }
    }
}

/// The batches that were late, of those that have no line to send any more.
fn gone(batches: HashMap<Arc<str>, Judged>) -> impl Iterator<Item = (Arc<str>, Judged)> {
    let late = batches.into_iter().filter(|(_, judged)| judged.is_late);
    late.map(|(id, judged)| {
        let ended = Judged {
            is_late: false,
            deficit: 0.0,
            lines: 0.0,
            ..judged
        };
        (id, ended)
    })
}

/// How long it is to be until a batch is judged again that has so much time left.
fn judged_every(left: Duration) -> Duration {
    (left / JUDGED_PART).clamp(JUDGED_EVERY_MIN, JUDGED_EVERY_MAX)
}

impl Judged {
    fn allows(&self) -> bool {
        self.allowance >= 1.0
    }
}

/// How many lines a second are answered while lines wait, as far as that was seen.
#[derive(Default)]
struct RateMeter {
    /// Seconds and answers, the latest last.
    samples: VecDeque<(f64, u32)>,
    seconds: f64,
}

impl RateMeter {
    fn add(&mut self, seconds: f64, answers: u32) {
        match self.samples.back_mut() {
            Some(last) if last.0 < SAMPLE => {
                last.0 += seconds;
                last.1 += answers;
            }
            _ => self.samples.push_back((seconds, answers)),
        }
        self.seconds += seconds;
        while let Some(&(first, _)) = self.samples.front()
            && self.seconds - first >= MEASURED_MAX
        {
            self.seconds -= first;
            self.samples.pop_front();
        }
    }

    /// Lines a second, measured so far back as the time that is `left` asks for. `latency`: how
    /// long a slow call takes. `None`: too little was seen.
    fn rate(&self, left: f64, latency: f64, in_flight: usize) -> Option<f64> {
        let wanted = (left * MEASURED_PART).clamp(MEASURED_MIN, MEASURED_MAX);
        let most = if latency > 0.0 {
            latency * MEASURED_CALLS
        } else {
            left
        };
        let most = most.clamp(wanted, MEASURED_MAX);
        let answers_wanted = MEASURED_ANSWERS.max(MEASURED_FLIGHTS * in_flight);
        let (mut seconds, mut answers, mut silent) = (0.0, 0, 0.0);
        let mut samples = self.samples.iter().rev().peekable();
        while let Some(&(took, answered)) = samples.next() {
            // The time begins behind an answer, and ends with one: what is in flight may be
            // answered yet.
            let is_first = samples.peek().is_none();
            let is_enough = seconds >= wanted && answers >= answers_wanted;
            let begins = answered > 0 && answers > 0 && (is_enough || is_first);
            if begins || seconds >= most {
                break;
            }
            seconds += took;
            answers += answered as usize;
            if answers == 0 {
                silent = seconds;
            }
        }
        let is_known = seconds >= most || seconds >= wanted && answers >= answers_wanted;
        let measured = (seconds - f64::min(silent, latency)).max(f64::MIN_POSITIVE);
        is_known.then(|| answers as f64 / measured)
    }
}

/// How long the latest calls took.
#[derive(Default)]
struct Latencies(VecDeque<Duration>);

impl Latencies {
    fn add(&mut self, took: Duration) {
        if self.0.len() == LATENCIES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    /// The 95th percentile, and what the slowest may take; zero where nothing is known.
    fn slow(&self) -> (Duration, Duration) {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let place = (sorted.len() * 95).div_ceil(100);
        let slow = place.checked_sub(1).and_then(|place| sorted.get(place));
        let slowest = sorted.last().copied().unwrap_or_default().mul_f64(SLOWEST);
        (slow.copied().unwrap_or_default(), slowest)
    }
}

#[cfg(test)]
mod tests;
