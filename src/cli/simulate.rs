//! `nightshift simulate`: a stand-in upstream, for trying things out and for load tests.

use std::io::Write as _;
use std::num::{NonZeroU64, NonZeroUsize};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::exit::{Exit, USAGE};
use crate::config::{Environment, parse_duration};
use crate::shutdown::{self, Hangup};
use crate::simulate::{
    ApiKey, Dialect, Options, Outage, OutageKind, RateKind, RateLimit, Simulator,
};

const EXAMPLE: &str = "\
Examples:
  nightshift simulate --latency 200ms --latency-jitter 150ms --error-rate 0.01
  nightshift serve --upstream http://127.0.0.1:8081/v1

  curl http://127.0.0.1:8081/v1/chat/completions -d \\
    '{\"model\": \"any\", \"messages\": [], \"simulate\": {\"status\": 503, \"times\": 2}}'
  curl http://127.0.0.1:8081/stats";

/// Start a stand-in upstream for trying things out and for load tests.
///
/// It answers OpenAI's endpoints with made-up text: the same request gets the same answer in every
/// run. `GET /stats` says what it saw. A request steers its own answer with a key "simulate" in
/// its body: status, times, `latency_ms`, `retry_after_ms`, body, headers, reset, truncate, stall,
/// hang, bytes, echo.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct SimulateArgs {
    /// Where to listen; port 0 takes a free one. The base URL is printed on standard output
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8081")]
    listen: String,

    /// How long a call takes on average, such as 500ms or 2s
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = parse_duration)]
    latency: Duration,

    /// A call takes up to this much less or more than --latency
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = parse_duration)]
    latency_jitter: Duration,

    /// Adds the time a model would need to write its answer
    #[arg(long, value_name = "N", value_parser = positive)]
    tokens_per_second: Option<f64>,

    /// Adds the time a model would need to embed the inputs of a call: 10000 is 0.1 ms for each
    #[arg(long, value_name = "N", value_parser = positive)]
    inputs_per_second: Option<f64>,

    /// An engine: with more calls at once than this, tokens come in proportion slower than
    /// --tokens-per-second (50 if left out) says. POST /slow-beyond/N changes it, and GET /metrics
    /// tells what vLLM would
    #[arg(long, value_name = "N")]
    slow_beyond: Option<NonZeroUsize>,

    /// Calls beyond it get 429 with Retry-After; a second's worth may come at once
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<NonZeroU64>,

    /// No window of this time may have more (may be repeated): requests=600/1m, tokens=60000/1m,
    /// `input_tokens`, `output_tokens`. A call too many gets 429, and GET /stats counts it. With
    /// several keys each has the limit for itself
    #[arg(long = "rate-limit", value_name = "TYPE=N/PERIOD", value_parser = rate_limit)]
    pub rate_limits: Vec<RateLimit>,

    /// Whose headers say what is left of --rate-limit
    #[arg(long, value_name = "API", default_value = "openai", value_parser = dialect)]
    pub rate_limit_headers: Dialect,

    /// The share of calls, from 0 to 1, that get 500
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    error_rate: f64,

    /// A prefix cache that keeps so many first messages: GET /stats counts the calls that have one of
    /// them, and their answers tell cached tokens
    #[arg(long, value_name = "N")]
    prefix_cache: Option<NonZeroUsize>,

    /// A call whose body has this text gets 400
    #[arg(long, value_name = "TEXT")]
    refuse_text: Option<String>,

    /// The share of calls, from 0 to 1, that get 429 with a short retry-after-ms
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    rate_limit_rate: f64,

    /// The share of streamed answers, from 0 to 1, that stand still in their middle. A call asks
    /// for a stream with "stream": true
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    stall_rate: f64,

    /// The share of streamed answers, from 0 to 1, whose connection is cut in their middle
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    break_rate: f64,

    /// More calls at once get 429
    #[arg(long, value_name = "N")]
    max_concurrency: Option<NonZeroUsize>,

    /// When it is away, counted from its start (may be repeated): refuse=10s-20s,40s-45s refuses
    /// connections, hang=10s-20s answers nothing, 503=10s-20s answers with this status
    #[arg(long = "outage", value_name = "KIND=FROM-TO", value_parser = outages)]
    outages: Vec<Outages>,

    /// Another seed gives other answers and lets other calls fail
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Serve this model (may be repeated) and no other; every model if none is named
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,

    /// How many tokens an answer has on average
    #[arg(long, value_name = "N", default_value_t = Options::default().answer_tokens)]
    answer_tokens: usize,

    /// The environment variable that holds a key which calls may carry (may be repeated); a call
    /// without one of them gets 401. POST /keys/NAME/401 refuses the key in that variable from then
    /// on (or 402, 403, 429), /keys/NAME/200 accepts the key again, and GET /stats counts each
    #[arg(long = "api-key-env", value_name = "NAME")]
    api_key_envs: Vec<String>,

    /// The same for a key that is refused with 401 from the start (may be repeated)
    #[arg(long = "refused-key-env", value_name = "NAME")]
    refused_key_envs: Vec<String>,

    /// Count how often each body came, for GET /stats
    #[arg(long)]
    track: bool,
}

/// Serves until Ctrl-C.
pub(super) async fn run(args: SimulateArgs) -> anyhow::Result<ExitCode> {
    if let Some(contradiction) = args.contradiction() {
        let error = anyhow::anyhow!("{contradiction}; see --help");
        return Err(Exit { code: USAGE, error }.into());
    }
    let listen = args.listen.clone();
    let options = args.options(&Environment::capture())?;
    let simulator = Simulator::start(&listen, options)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let stop = shutdown::on_signal(Hangup::Stops)?;
    writeln!(std::io::stdout(), "{}", simulator.base_url())?;
    stop.token().cancelled().await;
    simulator.stop().await;
    Ok(ExitCode::SUCCESS)
}

impl SimulateArgs {
    /// What cannot be meant together.
    fn contradiction(&self) -> Option<&'static str> {
        if self.error_rate + self.rate_limit_rate + self.stall_rate + self.break_rate > 1.0 {
            return Some("--error-rate and the other rates are more than 1 together");
        }
        if self.latency_jitter > self.latency {
            return Some("--latency-jitter is more than --latency");
        }
        None
    }

    fn options(self, environment: &Environment) -> anyhow::Result<Options> {
        let named = |variables: Vec<String>, is_refused| {
            let key = move |name: String| key(environment, name, is_refused);
            variables.into_iter().map(key)
        };
        let api_keys = named(self.api_key_envs, false)
            .chain(named(self.refused_key_envs, true))
            .collect::<anyhow::Result<Vec<ApiKey>>>()?;
        Ok(Options {
            latency: self.latency,
            jitter: self.latency_jitter,
            tokens_per_second: self.tokens_per_second,
            inputs_per_second: self.inputs_per_second,
            slow_beyond: self.slow_beyond.map(NonZeroUsize::get),
            requests_per_minute: self.requests_per_minute.map(NonZeroU64::get),
            rate_limits: self.rate_limits,
            dialect: self.rate_limit_headers,
            error_rate: self.error_rate,
            prefix_cache: self.prefix_cache.map(NonZeroUsize::get),
            refused_text: self.refuse_text,
            rate_limit_rate: self.rate_limit_rate,
            stall_rate: self.stall_rate,
            break_rate: self.break_rate,
            max_concurrency: self.max_concurrency.map(NonZeroUsize::get),
            seed: self.seed,
            models: self.models,
            api_keys,
            answer_tokens: self.answer_tokens,
            track: self.track,
            outages: self.outages.into_iter().flat_map(|all| all.0).collect(),
            granted: None,
        })
    }
}

fn key(environment: &Environment, name: String, is_refused: bool) -> anyhow::Result<ApiKey> {
    let Some(key) = environment.get(&name) else {
        bail!("the environment variable {name}, which is to hold a key, is not set");
    };
    Ok(ApiKey {
        key: key.into(),
        name,
        is_refused,
    })
}

fn rate_limit(text: &str) -> Result<RateLimit, String> {
    let limit = || {
        let (kind, rest) = text.split_once('=')?;
        let (limit, period) = rest.split_once('/')?;
        let kinds = [
            RateKind::Requests,
            RateKind::Tokens,
            RateKind::InputTokens,
            RateKind::OutputTokens,
        ];
        Some(RateLimit {
            kind: kinds.into_iter().find(|one| one.as_str() == kind)?,
            limit: limit.parse().ok()?,
            period: parse_duration(period).ok()?,
        })
    };
    limit().ok_or_else(|| "a rate limit is written like requests=600/1m".to_owned())
}

/// The outages of one flag.
#[derive(Clone, Debug)]
struct Outages(Vec<Outage>);

fn outages(text: &str) -> Result<Outages, String> {
    let time = |kind, text: &str| {
        let (from, to) = text.split_once('-')?;
        let from = parse_duration(from).ok()?;
        let to = parse_duration(to).ok().filter(|to| *to > from)?;
        Some(Outage { kind, from, to })
    };
    let all = || {
        let (kind, times) = text.split_once('=')?;
        let kind = match kind {
            "refuse" => OutageKind::Refuse,
            "hang" => OutageKind::Hang,
            status => {
                let status = status.parse().ok();
                OutageKind::Status(status.filter(|status| (400..600).contains(status))?)
            }
        };
        times.split(',').map(|text| time(kind, text)).collect()
    };
    let all: Option<Vec<Outage>> = all();
    all.map(Outages).ok_or_else(|| {
        "an outage is written like refuse=10s-20s,40s-45s, hang=10s-20s or 503=10s-20s".to_owned()
    })
}

fn dialect(text: &str) -> Result<Dialect, String> {
    match text {
        "openai" => Ok(Dialect::OpenAi),
        "anthropic" => Ok(Dialect::Anthropic),
        _ => Err("known are openai and anthropic".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share is a number from 0 to 1".to_owned()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("this must be a number above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use secrecy::ExposeSecret as _;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn args(line: &str) -> Result<SimulateArgs, clap::Error> {
        let words = std::iter::once("simulate").chain(line.split_whitespace());
        Ok(Command::try_parse_from(words)?.args)
    }

    #[test]
    fn the_flags_become_options() {
        let environment = Environment::from_iter([
            ("SIMULATED_KEY", "sk-simulated"),
            ("REFUSED_KEY", "sk-refused"),
        ]);
        let args = args(
            "--latency 200ms --latency-jitter 50ms --tokens-per-second 40 --error-rate 0.1 \
             --slow-beyond 64 --inputs-per-second 10000 --refuse-text poison --prefix-cache 5 \
             --rate-limit-rate 0.2 --requests-per-minute 600 --max-concurrency 8 --seed 7 \
             --model a --model b --answer-tokens 10 --track --rate-limit tokens=500/2m \
             --rate-limit-headers anthropic --outage refuse=10s-20s,40s-45s --outage 503=1m-2m \
             --api-key-env SIMULATED_KEY --refused-key-env REFUSED_KEY",
        )
        .unwrap();
        assert_eq!(args.contradiction(), None);
        let options = args.options(&environment).unwrap();
        assert_eq!(options.latency, Duration::from_millis(200));
        assert_eq!(options.jitter, Duration::from_millis(50));
        assert_eq!(options.tokens_per_second, Some(40.0));
        assert_eq!((options.error_rate, options.rate_limit_rate), (0.1, 0.2));
        assert_eq!(options.slow_beyond, Some(64));
        assert_eq!(options.prefix_cache, Some(5));
        assert_eq!(options.inputs_per_second, Some(10_000.0));
        assert_eq!(options.refused_text.as_deref(), Some("poison"));
        assert_eq!(options.requests_per_minute, Some(600));
        assert_eq!(options.max_concurrency, Some(8));
        assert_eq!((options.seed, options.answer_tokens), (7, 10));
        let limit = RateLimit {
            kind: RateKind::Tokens,
            limit: 500,
            period: Duration::from_mins(2),
        };
        assert_eq!(options.rate_limits, [limit]);
        assert_eq!(options.dialect, Dialect::Anthropic);
        let outage = |kind, from, to| Outage {
            kind,
            from: Duration::from_secs(from),
            to: Duration::from_secs(to),
        };
        assert_eq!(
            options.outages,
            [
                outage(OutageKind::Refuse, 10, 20),
                outage(OutageKind::Refuse, 40, 45),
                outage(OutageKind::Status(503), 60, 120),
            ]
        );
        assert_eq!(options.models, ["a", "b"]);
        assert!(options.track);
        let keys = options.api_keys.iter();
        let keys: Vec<_> = keys
            .map(|key| (&*key.name, key.key.expose_secret(), key.is_refused))
            .collect();
        assert_eq!(
            keys,
            [
                ("SIMULATED_KEY", "sk-simulated", false),
                ("REFUSED_KEY", "sk-refused", true),
            ]
        );
    }

    #[test]
    fn wrong_values_are_refused() {
        for line in [
            "--latency 5",
            "--latency ms",
            "--latency 1.5s",
            "--latency 99999999999999999d",
            "--error-rate 1.1",
            "--error-rate NaN",
            "--tokens-per-second 0",
            "--requests-per-minute 0",
            "--max-concurrency 0",
            "--slow-beyond 0",
            "--rate-limit requests=600",
            "--rate-limit calls=600/1m",
            "--rate-limit tokens=many/1m",
            "--rate-limit-headers gemini",
            "--outage 10s-20s",
            "--outage refuse=20s-10s",
            "--outage away=10s-20s",
            "--outage 200=10s-20s",
        ] {
            assert!(args(line).is_err(), "{line}");
        }
    }

    #[test]
    fn contradictions_are_found() {
        for line in [
            "--latency-jitter 1s",
            "--error-rate 0.6 --rate-limit-rate 0.6",
        ] {
            assert!(args(line).unwrap().contradiction().is_some(), "{line}");
        }
    }

    #[test]
    fn a_key_that_is_not_set_is_missed() {
        for flag in ["--api-key-env", "--refused-key-env"] {
            let args = args(&format!("{flag} SIMULATED_KEY")).unwrap();
            assert!(args.options(&Environment::default()).is_err());
        }
    }
}
