//! How many tokens a call will need: reserved before it is sent. Pure.

use crate::domain::usage::Usage;

/// The keys of a body that say how long an answer may be.
pub const MAX_OUTPUT: [&str; 3] = ["max_tokens", "max_completion_tokens", "max_output_tokens"];

/// The bytes of a token, until a model has shown otherwise.
const BYTES_PER_TOKEN: f64 = 4.0;
/// The output of a call that states no maximum, until a model has shown otherwise.
const FIRST_OUTPUT: u64 = 512;
/// So much of what was seen is not above an estimate: of the input, and of the output.
const INPUT_QUANTILE: f64 = 0.99;
const OUTPUT_QUANTILE: f64 = 0.9;
/// Nothing is learned from fewer answers.
const ANSWERS_MIN: u32 = 32;
/// With more answers, what is older counts for half.
const ANSWERS_MAX: u32 = 4_096;
/// Values are told apart to a sixteenth.
const STEPS_PER_DOUBLING: f64 = 11.5;

/// What is known of a call before it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineSize {
    /// Of the body.
    pub bytes: u64,
    /// The most tokens that the call itself asks for, of each answer.
    pub max_output: Option<u64>,
    /// How many answers it asks for; zero counts as one.
    pub answers: u64,
    /// It is answered without output tokens.
    pub is_input_only: bool,
}

/// Tokens that a call needs, or may need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub input: u64,
    pub output: u64,
}

impl From<Usage> for Tokens {
    fn from(usage: Usage) -> Self {
        let count = |tokens: i64| u64::try_from(tokens).unwrap_or(0);
        let input = count(usage.input_tokens);
        // Some servers report a sum alone.
        let rest = count(usage.total_tokens).saturating_sub(input);
        Self {
            input,
            output: count(usage.output_tokens).max(rest),
        }
    }
}

impl Tokens {
    /// The tokens that an answer took its time for: those that were written, where any were.
    pub fn timed(self) -> u64 {
        if self.output == 0 {
            self.input
        } else {
            self.output
        }
    }
}

/// What a model's answers have shown.
#[derive(Debug)]
pub struct Learned {
    /// Input tokens over what the bytes let expect.
    ratio: Quantile,
    output: Quantile,
}

impl LineSize {
    /// Of a line that states nothing so far: see [`note`](Self::note).
    #[must_use]
    pub fn new() -> Self {
        Self {
            answers: 1,
            ..Self::default()
        }
    }

    /// The body has this member.
    pub fn note(&mut self, key: &str, value: &str) {
        let count = || value.parse::<u64>().ok();
        match key {
            key if MAX_OUTPUT.contains(&key) => self.max_output = self.max_output.max(count()),
            "n" | "best_of" => self.answers = self.answers.max(count().unwrap_or(1)),
            _ => {}
        }
    }

    /// The size of a line with this body, whose `url` is `path`, once each member is noted.
    #[must_use]
    pub fn of(self, path: &str, body: &[u8]) -> Self {
        Self {
            bytes: body.len() as u64,
            is_input_only: matches!(path, "/v1/embeddings" | "/v1/moderations"),
            ..self
        }
    }
}

impl Default for Learned {
    fn default() -> Self {
        Self {
            ratio: Quantile::new(INPUT_QUANTILE),
            output: Quantile::new(OUTPUT_QUANTILE),
        }
    }
}

impl Learned {
    /// What is reserved for a call.
    pub fn estimate(&self, size: LineSize) -> Tokens {
        let ratio = self.ratio.value().unwrap_or(1.0);
        let input = (size.bytes as f64 / BYTES_PER_TOKEN * ratio).ceil() as u64;
        let output = match size.max_output {
            _ if size.is_input_only => 0,
            Some(most) => most.saturating_mul(size.answers.max(1)),
            None => self
                .output
                .value()
                .map_or(FIRST_OUTPUT, |value| value.ceil() as u64),
        };
        Tokens { input, output }
    }

    /// A call has used so much.
    pub fn learn(&mut self, size: LineSize, used: Tokens) {
        let expected = size.bytes as f64 / BYTES_PER_TOKEN;
        if expected >= 1.0 && used.input > 0 {
            self.ratio.learn(used.input as f64 / expected);
        }
        if size.max_output.is_none() && !size.is_input_only {
            self.output.learn(used.output.max(1) as f64);
        }
    }
}

/// A quantile of what was seen lately, from counts in steps that grow in proportion. It is asked
/// for more often than it learns, so it is kept.
#[derive(Debug)]
struct Quantile {
    quantile: f64,
    /// By step; the value 1 stands at 128.
    counts: Box<[u32]>,
    all: u32,
    /// The step that the quantile is in, how many values are in the steps below, and the upper end
    /// of the step.
    step: usize,
    below: u32,
    value: f64,
}

const STEPS: usize = 384;
const STEP_OF_ONE: f64 = 128.0;

impl Quantile {
    fn new(quantile: f64) -> Self {
        Self {
            quantile,
            counts: vec![0; STEPS].into(),
            all: 0,
            step: 0,
            below: 0,
            value: 0.0,
        }
    }

    fn learn(&mut self, value: f64) {
        let step = STEP_OF_ONE + (value.max(f64::MIN_POSITIVE).log2() * STEPS_PER_DOUBLING).floor();
        let step = step.clamp(0.0, (STEPS - 1) as f64) as usize;
        self.counts[step] += 1;
        self.all += 1;
        self.below += u32::from(step < self.step);
        if self.all >= ANSWERS_MAX {
            for count in &mut self.counts {
                *count /= 2;
            }
            self.all = self.counts.iter().sum();
            self.below = self.counts[..self.step].iter().sum();
        }
        self.find();
    }

    /// Goes from where the quantile was to where it is: seldom more than a step.
    fn find(&mut self) {
        let wanted = (f64::from(self.all) * self.quantile).ceil() as u32;
        while self.below >= wanted && self.step > 0 {
            self.step -= 1;
            self.below -= self.counts[self.step];
        }
        while self.below + self.counts[self.step] < wanted {
            self.below += self.counts[self.step];
            self.step += 1;
        }
        let end = (self.step as f64 + 1.0 - STEP_OF_ONE) / STEPS_PER_DOUBLING;
        self.value = end.exp2();
    }

    /// The upper end of the step that the quantile is in.
    fn value(&self) -> Option<f64> {
        (self.all >= ANSWERS_MIN).then_some(self.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_quantile_is_the_end_of_the_first_step_up_to_which_there_are_enough(
            values in proptest::collection::vec(1e-3_f64..1e6, 32..6_000),
            quantile in prop::sample::select(vec![INPUT_QUANTILE, OUTPUT_QUANTILE]),
        ) {
            let mut learned = Quantile::new(quantile);
            for (index, value) in values.into_iter().enumerate() {
                learned.learn(value);
                if index % 61 != 0 {
                    continue;
                }
                let wanted = (f64::from(learned.all) * quantile).ceil();
                let mut seen = 0;
                let step = learned.counts.iter().position(|count| {
                    seen += count;
                    f64::from(seen) >= wanted
                });
                prop_assert_eq!(Some(learned.step), step);
            }
            let end = (learned.step as f64 + 1.0 - STEP_OF_ONE) / STEPS_PER_DOUBLING;
            prop_assert_eq!(learned.value(), Some(end.exp2()));
        }
    }
}
