//! What an engine says of its own queue, in the words of five engines, and what follows from that
//! for a window. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// More calls waiting than this part of those running are a queue.
const QUEUE: f64 = 0.05;
/// After so many looks in a row with a queue the window does not grow, and after so many it is cut.
const QUEUED_HOLDS: u32 = 2;
const QUEUED_CUTS: u32 = 3;
/// A cache that is filled beyond this part is full.
const CACHE_FULL: f64 = 0.95;
/// The window is filled, or the calls of a larger one have ended, to this part.
const DRAINED: f64 = 1.05;
/// Processes look once a second each: what comes sooner is no other look.
const APART_MS: i64 = 800;
/// What was said longer ago says nothing of the present.
const FRESH_MS: i64 = 3_000;
/// An engine that has been full for so long without a queue is taken to run one call in so many
/// more.
const FULL_MS: i64 = 10_000;
const ROOM_PART: u32 = 50;

/// What an engine says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::upstream) struct EngineLoad {
    /// Calls that it works on, and that wait, whoever sent them.
    running: f64,
    waiting: f64,
    /// How much of its cache is in use: 1 is all of it.
    cache: Option<f64>,
    /// How often it has put calls off because the cache was full, since it started.
    preemptions: Option<f64>,
}

/// What five engines call the same. A colon in a name may have become an underscore on the way.
struct Words {
    running: &'static str,
    waiting: &'static str,
    /// Only series with this label count.
    of_running: Option<(&'static str, &'static str)>,
    of_waiting: Option<(&'static str, &'static str)>,
    of_cache: Option<(&'static str, &'static str)>,
    cache: &'static [&'static str],
    preemptions: &'static [&'static str],
}

const PLAIN: Words = Words {
    running: "",
    waiting: "",
    of_running: None,
    of_waiting: None,
    of_cache: None,
    cache: &[],
    preemptions: &[],
};

const ENGINES: [Words; 6] = [
    // vLLM; the second name of its cache is that of older versions.
    Words {
        running: "vllm_num_requests_running",
        waiting: "vllm_num_requests_waiting",
        cache: &["vllm_kv_cache_usage_perc", "vllm_gpu_cache_usage_perc"],
        preemptions: &["vllm_num_preemptions_total"],
        ..PLAIN
    },
    // SGLang
    Words {
        running: "sglang_num_running_reqs",
        waiting: "sglang_num_queue_reqs",
        cache: &["sglang_token_usage"],
        preemptions: &[
            "sglang_num_retracted_requests_total",
            "sglang_num_retracted_reqs_total",
        ],
        ..PLAIN
    },
    // TGI
    Words {
        running: "tgi_batch_current_size",
        waiting: "tgi_queue_size",
        ..PLAIN
    },
    // llama.cpp; newer versions tell nothing of their cache.
    Words {
        running: "llamacpp_requests_processing",
        waiting: "llamacpp_requests_deferred",
        cache: &["llamacpp_kv_cache_usage_ratio"],
        ..PLAIN
    },
    // TensorRT-LLM, served by itself
    Words {
        running: "trtllm_num_requests_running",
        waiting: "trtllm_num_requests_waiting",
        cache: &["trtllm_kv_cache_utilization"],
        ..PLAIN
    },
    // TensorRT-LLM, served by Triton
    Words {
        running: "nv_trt_llm_request_metrics",
        waiting: "nv_trt_llm_request_metrics",
        of_running: Some(("request_type", "scheduled")),
        of_waiting: Some(("request_type", "waiting")),
        of_cache: Some(("kv_cache_block_type", "fraction")),
        cache: &["nv_trt_llm_kv_cache_block_metrics"],
        ..PLAIN
    },
];

/// Each rank of a model that is spread over several cards says the same of the same calls.
const RANKS: [&str; 3] = ["tp_rank", "pp_rank", "moe_ep_rank"];
/// With a value, a series counts the calls of one priority, which another series counts, too.
const PRIORITY: &str = "priority";

impl EngineLoad {
    /// Reads metrics in the Prometheus text format. `None`: no engine that is known says how many
    /// calls it runs and how many wait.
    pub(in crate::upstream) fn read(text: &str) -> Option<Self> {
        let series: Vec<Series> = text.lines().filter_map(Series::read).collect();
        ENGINES.iter().find_map(|words| {
            let sum = |name, label| Some(sum(&by_source(&series, name, label)?));
            let caches = words.cache.iter();
            let caches = caches.filter_map(|name| by_source(&series, name, words.of_cache));
            let most = caches.flat_map(BTreeMap::into_values).reduce(f64::max);
            let mut preemptions = words.preemptions.iter();
            Some(Self {
                running: sum(words.running, words.of_running)?,
                waiting: sum(words.waiting, words.of_waiting)?,
                cache: most,
                preemptions: preemptions.find_map(|name| sum(name, None)),
            })
        })
    }

    #[cfg(test)]
    pub(super) fn of(running: u32, waiting: u32) -> Self {
        Self {
            running: running.into(),
            waiting: waiting.into(),
            ..Self::default()
        }
    }

    /// All calls at the engine, as far as a number of calls can say.
    fn all(self) -> f64 {
        self.running + self.waiting
    }
}

/// One line of metrics.
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Series {
    /// `None`: a comment, or nothing that can be read.
    fn read(line: &str) -> Option<Self> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
        let (name, rest) = line.split_at(end);
        let mut labels = BTreeMap::new();
        let rest = match rest.strip_prefix('{') {
            Some(rest) => read_labels(rest, &mut labels)?,
            None => rest,
        };
        let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
        // No count, and no part of anything, is anything else.
        (value.is_finite() && value >= 0.0).then(|| Self {
            name: name.replace(':', "_"),
            labels,
            value,
        })
    }
}

/// Reads labels up to their closing brace. What follows it.
fn read_labels<'t>(mut text: &'t str, labels: &mut BTreeMap<String, String>) -> Option<&'t str> {
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some(rest);
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next()? {
                (end, '"') => break end,
                (_, '\\') => value.push(chars.next()?.1),
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.trim().to_owned(), value);
        text = &rest[end + 1..];
    }
}

/// The values of a metric, each source of it once. `None`: there is no such metric.
fn by_source(
    series: &[Series],
    name: &str,
    label: Option<(&str, &str)>,
) -> Option<BTreeMap<Vec<String>, f64>> {
    let mut sources: BTreeMap<Vec<String>, f64> = BTreeMap::new();
    for series in series.iter().filter(|series| series.name == name) {
        let has = |(name, value): (&str, &str)| {
            let label = series.labels.get(name);
            label.is_some_and(|found| found == value)
        };
        let is_part = series
            .labels
            .get(PRIORITY)
            .is_some_and(|priority| !priority.is_empty());
        if is_part || !label.is_none_or(has) {
            continue;
        }
        let labels = series.labels.iter();
        let source = labels.filter(|(name, _)| !RANKS.contains(&name.as_str()));
        let source = source.map(|(name, value)| format!("{name}={value}"));
        let value = sources.entry(source.collect()).or_default();
        *value = value.max(series.value);
    }
    (!sources.is_empty()).then_some(sources)
}

fn sum(values: &BTreeMap<Vec<String>, f64>) -> f64 {
    values.values().sum()
}

/// What is known of the calls at an engine when it says something of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    pub(super) now_ms: i64,
    /// Calls of the window in flight, over all processes.
    pub(super) mine: u32,
    /// All our calls in flight at the upstream.
    pub(super) ours: u32,
    pub(super) window: u32,
    /// The window was found, and is held.
    pub(super) is_held: bool,
    /// Whether others have the right of way.
    pub(super) yields: bool,
}

/// What the engine's word means for the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Fine,
    /// Calls have waited for too long.
    Queue,
    Cache,
    Preemption,
}

/// What an engine has said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Engine {
    at_ms: i64,
    /// Looks in a row with a queue.
    queued: u32,
    preemptions: Option<f64>,
    /// The window that was found while nobody else used the engine.
    alone: Option<u32>,
    /// How many calls the engine worked on when others waited, and since when there was no queue.
    capacity: Option<u32>,
    full_since_ms: Option<i64>,
    /// Calls at once that are left for us beside what others send.
    left: Option<u32>,
}

impl Engine {
    /// Takes in what the engine says.
    pub(super) fn hear(&mut self, load: EngineLoad, traffic: Traffic) -> Signal {
        let now_ms = traffic.now_ms;
        // The clock may have been set back.
        let since_ms = now_ms - self.at_ms;
        if (0..APART_MS).contains(&since_ms) {
            return Signal::Fine;
        }
        if !(0..=FRESH_MS).contains(&since_ms) {
            self.queued = 0;
            self.preemptions = None;
        }
        self.at_ms = now_ms;
        let others = traffic.yields && self.make_way(load, traffic);
        let before = std::mem::replace(&mut self.preemptions, load.preemptions);
        // Of a window that was just cut, calls must end before the engine can feel it.
        let is_drained = f64::from(traffic.mine) <= DRAINED * f64::from(traffic.window);
        let has_queue = load.waiting > QUEUE * load.running && load.waiting >= 1.0;
        if others || !is_drained || !has_queue {
            self.queued = 0;
        } else {
            self.queued += 1;
        }
        if others || !is_drained || traffic.mine == 0 {
            return Signal::Fine;
        }
        if load.cache.is_some_and(|cache| cache > CACHE_FULL) {
            return Signal::Cache;
        }
        if before
            .zip(load.preemptions)
            .is_some_and(|(was, is)| is > was)
        {
            return Signal::Preemption;
        }
        if self.queued >= QUEUED_CUTS {
            self.queued = 0;
            return Signal::Queue;
        }
        Signal::Fine
    }

    /// Whether the engine has calls waiting.
    pub(super) fn is_queued(&self, now_ms: i64) -> bool {
        self.queued >= QUEUED_HOLDS && self.is_fresh(now_ms)
    }

    /// Calls at once that are left for us beside what others send; `None`: nothing is known of
    /// others.
    pub(super) fn cap(&self, now_ms: i64) -> Option<u32> {
        self.left.filter(|_| self.is_fresh(now_ms))
    }

    fn is_fresh(&self, now_ms: i64) -> bool {
        (0..=FRESH_MS).contains(&(now_ms - self.at_ms))
    }

    /// Leaves to others what they use. Whether there are any.
    fn make_way(&mut self, load: EngineLoad, traffic: Traffic) -> bool {
        let others = load.all() - f64::from(traffic.ours);
        if others < 1.0 {
            if traffic.is_held && traffic.mine >= traffic.window {
                self.alone = Some(traffic.window);
            }
            self.left = None;
            return false;
        }
        self.learn_capacity(load, traffic.now_ms);
        let known = self.capacity.into_iter().chain(self.alone).min();
        self.left = known.map(|capacity| {
            // Of what our calls of other models use, each window has its part.
            let ours = traffic.ours.max(traffic.mine);
            let part = f64::from(traffic.mine + 1) / f64::from(ours + 1);
            ((f64::from(capacity) - others) * part).max(0.0).round() as u32
        });
        true
    }

    fn learn_capacity(&mut self, load: EngineLoad, now_ms: i64) {
        let running = load.running as u32;
        if load.waiting >= 1.0 {
            self.capacity = Some(running);
            self.full_since_ms = None;
            return;
        }
        let Some(capacity) = self.capacity.filter(|known| running >= *known) else {
            self.full_since_ms = None;
            return;
        };
        let since = *self.full_since_ms.get_or_insert(now_ms);
        if now_ms - since >= FULL_MS {
            self.capacity = Some(running.max(capacity + (capacity / ROOM_PART).max(1)));
            self.full_since_ms = Some(now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_engines_are_understood() {
        for (text, load) in [
            (
                "# TYPE vllm:num_requests_running gauge\n\
                 vllm:num_requests_running{engine=\"0\",model_name=\"a, \\\"b\\\" {c}\"} 12.0\n\
                 vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 8.0\n\
                 vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 3.0\n\
                 vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.4\n\
                 vllm:kv_cache_usage_perc{engine=\"1\",model_name=\"m\"} 0.9\n\
                 vllm:num_preemptions_total{engine=\"0\",model_name=\"m\"} 7.0 1700000000\n",
                (20.0, 3.0, Some(0.9), Some(7.0)),
            ),
            (
                "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n\
                 vllm:gpu_cache_usage_perc 0.25\n",
                (1.0, 0.0, Some(0.25), None),
            ),
            (
                "sglang:num_running_reqs{dp_rank=\"0\",tp_rank=\"0\",priority=\"\"} 3\n\
                 sglang:num_running_reqs{dp_rank=\"0\",tp_rank=\"1\",priority=\"\"} 3\n\
                 sglang:num_running_reqs{dp_rank=\"0\",tp_rank=\"0\",priority=\"1\"} 2\n\
                 sglang:num_running_reqs{dp_rank=\"1\",tp_rank=\"2\",priority=\"\"} 4\n\
                 sglang_num_queue_reqs{dp_rank=\"0\",tp_rank=\"0\"} 1\n\
                 sglang:token_usage{dp_rank=\"0\"} 0.31\n\
                 sglang:num_retracted_requests_total 2\n",
                (7.0, 1.0, Some(0.31), Some(2.0)),
            ),
            (
                "tgi_batch_current_size 4\ntgi_queue_size 7\n",
                (4.0, 7.0, None, None),
            ),
            (
                "llamacpp:requests_processing 4\nllamacpp:requests_deferred 46\n\
                 llamacpp:kv_cache_usage_ratio 0.63\n",
                (4.0, 46.0, Some(0.63), None),
            ),
            (
                "trtllm_num_requests_running{model_name=\"m\"} 3.0\n\
                 trtllm_num_requests_waiting{model_name=\"m\"} 2.0\n\
                 trtllm_kv_cache_utilization{model_name=\"m\"} 0.5\n",
                (3.0, 2.0, Some(0.5), None),
            ),
            (
                "nv_trt_llm_request_metrics{model=\"t\",request_type=\"context\",version=\"1\"} 9\n\
                 nv_trt_llm_request_metrics{model=\"t\",request_type=\"scheduled\",version=\"1\"} 5\n\
                 nv_trt_llm_request_metrics{model=\"t\",request_type=\"waiting\",version=\"1\"} 6\n\
                 nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\",model=\"t\"} 900\n\
                 nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\",model=\"t\"} 0.2\n",
                (5.0, 6.0, Some(0.2), None),
            ),
        ] {
            let (running, waiting, cache, preemptions) = load;
            let load = EngineLoad {
                running,
                waiting,
                cache,
                preemptions,
            };
            assert_eq!(EngineLoad::read(text), Some(load), "{text}");
        }
    }

    #[test]
    fn what_no_engine_says_is_no_load() {
        for text in [
            "",
            "<html>Not found</html>",
            "process_open_fds 12\n",
            "vllm:num_requests_running 3\n",
            "vllm:num_requests_running NaN\nvllm:num_requests_waiting 0\n",
            "vllm:num_requests_running -1\nvllm:num_requests_waiting 0\n",
            "vllm:num_requests_running{a=\"b 1\nvllm:num_requests_waiting{a} 0\n",
        ] {
            assert_eq!(EngineLoad::read(text), None, "{text}");
        }
    }

    fn load(running: f64, waiting: f64) -> EngineLoad {
        EngineLoad {
            running,
            waiting,
            ..EngineLoad::default()
        }
    }

    fn traffic(second: i64, mine: u32) -> Traffic {
        Traffic {
            now_ms: 1_000_000 + 1_000 * second,
            mine,
            ours: mine,
            window: 100,
            is_held: true,
            yields: false,
        }
    }

    #[test]
    fn a_queue_holds_the_window_at_the_second_look_and_cuts_it_at_the_third() {
        let mut engine = Engine::default();
        let looks = [(1, 0.0), (2, 9.0), (3, 9.0), (4, 9.0)];
        let signals = looks.map(|(second, waiting)| {
            let signal = engine.hear(load(90.0, waiting), traffic(second, 99));
            (signal, engine.is_queued(traffic(second, 0).now_ms))
        });
        assert_eq!(
            signals,
            [
                (Signal::Fine, false),
                (Signal::Fine, false),
                (Signal::Fine, true),
                (Signal::Queue, false)
            ]
        );
    }

    #[test]
    fn calls_of_a_larger_window_that_was_cut_must_end_before_it_is_cut_again() {
        let mut engine = Engine::default();
        for second in 1..10 {
            let signal = engine.hear(load(90.0, 50.0), traffic(second, 140));
            assert_eq!(signal, Signal::Fine);
        }
    }

    #[test]
    fn a_full_cache_and_preemptions_cut_at_once() {
        let mut engine = Engine::default();
        let full = EngineLoad {
            cache: Some(0.96),
            ..load(90.0, 0.0)
        };
        assert_eq!(engine.hear(full, traffic(1, 90)), Signal::Cache);
        let preempted = |count| EngineLoad {
            preemptions: Some(count),
            ..load(90.0, 0.0)
        };
        let counts = [(2, 5.0), (3, 5.0), (4, 6.0), (5, 0.0)];
        let signals =
            counts.map(|(second, count)| engine.hear(preempted(count), traffic(second, 90)));
        let [first, same, more, restarted] = signals;
        assert_eq!([first, same, restarted], [Signal::Fine; 3]);
        assert_eq!(more, Signal::Preemption);
    }

    #[test]
    fn what_others_use_is_left_to_them_and_the_rest_is_ours() {
        let mut engine = Engine::default();
        let mut hear = |second, running, waiting, mine| {
            let traffic = Traffic {
                yields: true,
                window: 64,
                ..traffic(second, mine)
            };
            engine.hear(load(running, waiting), traffic);
            engine.cap(traffic.now_ms)
        };
        // Alone, all of it.
        assert_eq!(hear(1, 64.0, 0.0, 64), None);
        // Thirty of others come: they wait, and the engine shows what it can run.
        assert_eq!(hear(2, 64.0, 30.0, 64), Some(34));
        // Of ours, some have ended.
        assert_eq!(hear(3, 64.0, 16.0, 50), Some(34));
        assert_eq!(hear(4, 64.0, 0.0, 34), Some(34));
        // More of others than it can run: nothing is left.
        assert_eq!(hear(5, 64.0, 50.0, 34), Some(0));
        assert_eq!(hear(6, 64.0, 16.0, 0), Some(0));
        // They go.
        assert_eq!(hear(7, 20.0, 0.0, 0), Some(44));
        assert_eq!(hear(8, 44.0, 0.0, 44), None);
    }

    #[test]
    fn what_was_said_long_ago_says_nothing() {
        let mut engine = Engine::default();
        let traffic = Traffic {
            yields: true,
            ..traffic(1, 10)
        };
        engine.hear(load(64.0, 30.0), traffic);
        assert_eq!(engine.cap(traffic.now_ms), Some(0));
        assert_eq!(engine.cap(traffic.now_ms + FRESH_MS + 1), None);
    }
}
