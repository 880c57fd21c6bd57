//! A simulated engine, which writes the tokens of all its calls at one pace, and processes that
//! keep it as busy as their shares of the window let them. Time passes from event to event.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::upstream::limits::auto::engine::EngineLoad;
use crate::upstream::limits::auto::meter::{Ending, Meter, Stamp};
use crate::upstream::limits::auto::window::{Turn, Window};

/// Tokens a second of a call that is alone.
const RATE: f64 = 50.0;
/// Tokens of an answer, on average.
const TOKENS: f64 = 100.0;
/// What fails or is turned away at once takes so long, in seconds.
const AT_ONCE: f64 = 0.05;
/// A process takes a turn so often, in seconds.
const TURN: f64 = 1.0;
const MOST: u32 = 1024;
/// A process that was turned away sends no more than it has in flight, and then one more after so
/// many answers: as the breaker does.
const ANSWERS_TO_WIDEN: u32 = 12;

/// How a token's time depends on how many calls are in flight.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// Flat up to the knee, and then in proportion.
    Hard,
    /// The same with a bend: the higher the power, the narrower.
    Soft(f64),
}

/// What is sent, and what the engine makes of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) shape: Shape,
    /// How far the lengths of answers are apart: the spread of their logarithms.
    pub(super) spread: f64,
    /// Of a call, in tokens.
    pub(super) overhead: f64,
    /// Answers are a tenth as long and three times as long, in turn, for twenty flights each.
    pub(super) alternates: bool,
    /// How far the engine's pace strays from second to second.
    pub(super) noise: f64,
    /// The part of calls that fail, at the end or at once.
    pub(super) fail: f64,
    pub(super) fail_at_once: bool,
    /// Calls beyond the knee are turned away instead of slowing all down.
    pub(super) turns_away: bool,
    pub(super) processes: usize,
    /// No more calls at once than this are there to be sent.
    pub(super) demand: usize,
    /// The engine says once a second how many calls it runs and how many wait.
    pub(super) tells: bool,
    /// Others have the right of way.
    pub(super) yields: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            shape: Shape::Hard,
            spread: 0.8,
            overhead: 0.0,
            alternates: false,
            noise: 0.0,
            fail: 0.0,
            fail_at_once: false,
            turns_away: false,
            processes: 1,
            demand: usize::MAX,
            tells: false,
            yields: false,
        }
    }
}

struct Call {
    process: usize,
    stamp: Stamp,
    begun: f64,
    tokens: f64,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Answered,
    Failed,
    TurnedAway,
}

struct Process {
    meter: Meter,
    share: usize,
    turn_at: f64,
    is_due: bool,
    /// `None`: as many as its share.
    narrow: Option<(usize, u32)>,
}

pub(super) struct Simulation {
    pub(super) knee: u32,
    /// Calls that others have at the engine, all the time.
    pub(super) others: u32,
    load: Load,
    fixed: Option<u32>,
    /// As it is stored.
    stored: Option<String>,
    size: u32,
    pub(super) smallest: u32,
    pub(super) largest: u32,
    most_in_flight: u32,
    processes: Vec<Process>,
    calls: Vec<Option<Call>>,
    free: Vec<usize>,
    /// Calls that the engine works on, by how many tokens each call has had when they end.
    working: BinaryHeap<Reverse<(u64, usize)>>,
    /// Calls that end without work, by when.
    quick: Vec<(f64, usize)>,
    /// Tokens that each call in flight has had since the start, in seconds, and flights.
    served: f64,
    now: f64,
    flights: f64,
    tokens: f64,
    noise: (f64, f64),
    random: u64,
}

impl Simulation {
    pub(super) fn new(knee: u32, load: Load, seed: u64) -> Self {
        let process = |number: usize| Process {
            meter: Meter::default(),
            share: 0,
            turn_at: 0.3 * number as f64,
            is_due: false,
            narrow: None,
        };
        Self {
            knee,
            others: 0,
            load,
            fixed: None,
            stored: None,
            size: 0,
            smallest: u32::MAX,
            largest: 0,
            most_in_flight: 0,
            processes: (0..load.processes).map(process).collect(),
            calls: Vec::new(),
            free: Vec::new(),
            working: BinaryHeap::new(),
            quick: Vec::new(),
            served: 0.0,
            now: 0.0,
            flights: 0.0,
            tokens: 0.0,
            noise: (0.0, 1.0),
            random: seed.wrapping_mul(7919) + 13,
        }
    }

    /// With a fixed number of calls at once.
    pub(super) fn fixed(window: u32, knee: u32, load: Load, seed: u64) -> Self {
        let mut simulation = Self::new(knee, load, seed);
        simulation.fixed = Some(window);
        simulation
    }

    /// Calls at once now.
    pub(super) fn window(&self) -> u32 {
        self.size
    }

    /// The most calls that were in flight together.
    pub(super) fn most_in_flight(&self) -> u32 {
        self.most_in_flight
    }

    pub(super) fn now(&self) -> f64 {
        self.now
    }

    /// Our calls in flight.
    pub(super) fn ours(&self) -> u32 {
        u32::try_from(self.in_flight()).expect("few")
    }

    /// Calls that the engine has waiting, whoever sent them.
    pub(super) fn waiting(&self) -> u32 {
        (self.ours() + self.others).saturating_sub(self.knee)
    }

    /// When the last of the calls that are in flight ends, if no more come.
    pub(super) fn all_ended(&self) -> f64 {
        let left = self.working.iter().map(|Reverse((at, _))| *at);
        let left = left.map(f64::from_bits).fold(0.0, f64::max) - self.served;
        self.now + left / self.pace(f64::from(self.ours() + self.others))
    }

    /// Tokens a second that the engine could write at most.
    pub(super) fn most_goodput(&self) -> f64 {
        f64::from(self.knee) * RATE * TOKENS / (TOKENS + self.load.overhead)
    }

    /// The processes are started again.
    pub(super) fn restart(&mut self) {
        for process in &mut self.processes {
            process.meter = Meter::default();
            process.share = 0;
        }
        self.calls.clear();
        self.free.clear();
        self.working.clear();
        self.quick.clear();
    }

    /// Runs for so many windows full of answers.
    pub(super) fn run(&mut self, flights: f64) {
        let end = self.flights + flights;
        while self.flights < end {
            self.step();
        }
    }

    /// Runs until so many flights are over, or, where nothing is sent, for half a minute.
    pub(super) fn run_until_flight(&mut self, flights: f64) {
        let end = self.now + 30.0;
        while self.flights < flights && self.now < end {
            self.step();
        }
    }

    /// Runs until this time, in seconds.
    pub(super) fn run_until(&mut self, time: f64) {
        while self.now < time {
            self.step();
        }
    }

    /// Runs for so many flights, and then for so many seconds: tokens a second in these.
    pub(super) fn run_for(&mut self, flights: f64, seconds: f64) -> f64 {
        self.run(flights);
        let (tokens, begun) = (self.tokens, self.now);
        while self.now < begun + seconds {
            self.step();
        }
        (self.tokens - tokens) / (self.now - begun)
    }

    fn step(&mut self) {
        for process in 0..self.processes.len() {
            self.fill(process);
        }
        let active = (self.working.len().max(1) + self.others as usize) as f64;
        let pace = self.pace(active) * self.noise.1;
        let next = self.working.peek();
        let ends = next.map_or(f64::INFINITY, |Reverse((at, _))| {
            self.now + (f64::from_bits(*at) - self.served).max(0.0) / pace
        });
        let quick = self.quick.iter().map(|(at, _)| *at);
        let quick = quick.fold(f64::INFINITY, f64::min);
        let turns = self.processes.iter().map(|process| process.turn_at);
        let turn = turns.fold(f64::INFINITY, f64::min);
        let at = ends.min(quick).min(turn).min(self.noise.0);
        self.served += (at - self.now).max(0.0) * pace;
        self.now = at.max(self.now);
        if at == self.noise.0 {
            let noise = 1.0 + self.load.noise * self.normal();
            self.noise = (self.now + 1.0, noise.clamp(0.3, 2.0));
        }
        if at == ends
            && let Some(Reverse((_, call))) = self.working.pop()
        {
            self.end(call);
        }
        let (over, left) = std::mem::take(&mut self.quick)
            .into_iter()
            .partition(|(at, _)| *at <= self.now);
        self.quick = left;
        let over: Vec<(f64, usize)> = over;
        for (_, call) in over {
            self.end(call);
        }
        for process in 0..self.processes.len() {
            let due = &self.processes[process];
            if due.turn_at <= self.now || due.is_due {
                self.turn(process);
            }
        }
    }

    /// Tokens a second of each of so many calls.
    fn pace(&self, calls: f64) -> f64 {
        let filled = calls / f64::from(self.knee);
        RATE * match self.load.shape {
            _ if self.load.turns_away => 1.0,
            Shape::Hard => (1.0 / filled).min(1.0),
            Shape::Soft(power) => (1.0 + filled.powf(power)).powf(-1.0 / power),
        }
    }

    /// Begins as many calls as a process may make.
    fn fill(&mut self, number: usize) {
        loop {
            let all: usize = self.in_flight();
            let process = &self.processes[number];
            let narrow = process.narrow.map_or(usize::MAX, |(most, _)| most);
            let in_flight = process.meter.in_flight();
            if in_flight >= process.share.min(narrow) || all >= self.load.demand {
                return;
            }
            let share = process.share;
            let is_full = self.load.turns_away && self.working.len() >= self.knee as usize;
            let fate = if is_full {
                Fate::TurnedAway
            } else if self.share() < self.load.fail {
                Fate::Failed
            } else {
                Fate::Answered
            };
            let tokens = self.length();
            let call = Call {
                process: number,
                stamp: self.processes[number].meter.start(share),
                begun: self.now,
                tokens,
                fate,
            };
            let place = self.free.pop().unwrap_or_else(|| {
                self.calls.push(None);
                self.calls.len() - 1
            });
            self.calls[place] = Some(call);
            let is_quick = fate == Fate::Failed && self.load.fail_at_once;
            if is_quick || fate == Fate::TurnedAway {
                self.quick.push((self.now + AT_ONCE, place));
            } else {
                let end = self.served + tokens + self.load.overhead;
                self.working.push(Reverse((end.to_bits(), place)));
            }
            let all = u32::try_from(self.in_flight()).expect("few");
            self.most_in_flight = self.most_in_flight.max(all);
        }
    }

    fn in_flight(&self) -> usize {
        let processes = self.processes.iter();
        processes.map(|process| process.meter.in_flight()).sum()
    }

    fn length(&mut self) -> f64 {
        let mean = match self.load.alternates {
            true if self.flights % 40.0 < 20.0 => TOKENS / 10.0,
            true => TOKENS * 3.0,
            false => TOKENS,
        };
        let spread = self.load.spread;
        let logarithm = spread * self.normal() - spread * spread / 2.0;
        (mean * logarithm.exp()).max(1.0).floor()
    }

    fn end(&mut self, place: usize) {
        let Some(call) = self.calls[place].take() else {
            return;
        };
        self.free.push(place);
        let process = &mut self.processes[call.process];
        let ending = match call.fate {
            Fate::Answered => Ending::Answered {
                took: Duration::from_secs_f64(self.now - call.begun),
                tokens: call.tokens as u64,
            },
            Fate::Failed => Ending::Other,
            Fate::TurnedAway => Ending::TurnedAway {
                names_a_time: false,
            },
        };
        process.is_due |= process.meter.end(call.stamp, ending);
        match call.fate {
            Fate::Answered => {
                self.tokens += call.tokens;
                self.flights += 1.0 / f64::from(self.size.max(1));
                if let Some((most, answers)) = &mut process.narrow {
                    *answers += 1;
                    if *answers >= ANSWERS_TO_WIDEN {
                        *most += 1;
                        *answers = 0;
                    }
                }
            }
            Fate::Failed => {}
            Fate::TurnedAway => {
                process.narrow = Some((process.meter.in_flight().max(1), 0));
            }
        }
    }

    fn turn(&mut self, number: usize) {
        let now_ms = 1_000 + (self.now * 1_000.0) as i64;
        let count = self.processes.len();
        let (running, waiting) = (self.ours() + self.others - self.waiting(), self.waiting());
        let process = &mut self.processes[number];
        process.turn_at = self.now + TURN;
        process.is_due = false;
        let stored = self.stored.as_deref().and_then(Window::read);
        let mut window = stored.unwrap_or_else(|| Window::new(now_ms, MOST));
        let turn = Turn {
            token: &number.to_string(),
            now_ms,
            most: MOST,
            yields: self.load.yields,
            load: self.load.tells.then(|| EngineLoad::of(running, waiting)),
            at_upstream: u32::try_from(process.meter.in_flight()).expect("few"),
        };
        window.turn(turn, &process.meter.report());
        self.size = self.fixed.unwrap_or_else(|| window.allowed(now_ms));
        let share = |process: usize| {
            let size = self.size as usize;
            size / count + usize::from(process < size % count)
        };
        let wanted = f64::from(window.wanted()) / count as f64;
        let (generation, overhead) = (window.generation(), window.overhead());
        process
            .meter
            .follow(generation, overhead, wanted.ceil() as u32);
        process.share = share(number);
        // What shrinks, shrinks everywhere before anything grows.
        for (other, process) in self.processes.iter_mut().enumerate() {
            process.share = process.share.min(share(other));
        }
        self.smallest = self.smallest.min(self.size);
        self.largest = self.largest.max(self.size);
        self.stored = Some(window.stored());
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        // SplitMix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Of a normal distribution around 0.
    fn normal(&mut self) -> f64 {
        let (one, other) = (self.share(), self.share());
        (-2.0 * one.max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * other).cos()
    }
}
