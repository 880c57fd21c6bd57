//! The flags of `nightshift run`, and its help.

use std::path::PathBuf;
use std::time::Duration;

use super::flags;
use super::input::reshape::Reshape;
use crate::config::Overrides;

const EXAMPLE: &str = "\
Examples:
  nightshift run -i requests.jsonl -o answers.jsonl \\
    --upstream http://localhost:8000/v1
  cat requests.jsonl.gz | nightshift run -i - -o answers.jsonl --model llama
  nightshift run -i texts.jsonl -o - --ids --model bge-m3 \\
    --upstream http://localhost:8000/v1

The input may be compressed with gzip or zstd.

Stopped and started again it goes on where it was, and sends nothing twice.
Where the input has changed, lines keep the answers that they have, by
custom_id and body. Meanwhile the answers so far are in the output's name with
.partial. An output or an errors file that is no file, such as a pipe, gets its
lines as they come, and all again from the first when a stopped run goes on.

Without --upstream and without configured upstreams, the variable
OPENAI_BASE_URL says where to send, and OPENAI_API_KEY, where it is set, with
which key. An address given by --upstream gets no key but the one of
--api-key-env.

Exit codes:
  0    every request succeeded
  1    some requests failed, or the run could not be finished: the message
       says which
  2    the command line is wrong
  3    the input, an output or the configuration is not valid: nothing was
       sent
  4    no upstream answered, or the upstreams refuse every request
  130  interrupted (SIGINT)
  141  whoever read the output has gone, as head does
  143  terminated (SIGTERM or SIGHUP)";

/// Run one batch without a server, from a file to a file.
///
/// The output has one line for each request that succeeded, in input order; requests that failed
/// are in the errors file.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(in crate::cli) struct RunArgs {
    /// The JSONL file of requests, which may be compressed with gzip or zstd; - reads standard
    /// input
    #[arg(short, long, value_name = "FILE")]
    pub(super) input: PathBuf,

    /// Where the answers go: a file, a pipe or a device; - writes to standard output
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: PathBuf,

    /// Where failed requests go, if any [default: the output's name with .errors.jsonl; where the
    /// output is no file, errors.jsonl in the state directory]
    #[arg(long, value_name = "FILE")]
    pub(super) errors: Option<PathBuf>,

    /// The directory for what is needed to go on later: a new one, an empty one, or that of an
    /// earlier run [default: the output's name with .nightshift; where the output is no file, a new
    /// one in the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,

    /// Send every model to this server, instead of what the configuration says
    #[arg(long, value_name = "URL")]
    pub(super) upstream: Option<String>,

    /// The environment variable that holds the key of --upstream
    #[arg(long, value_name = "NAME")]
    pub(super) api_key_env: Option<String>,

    /// Send this header with each call (may be repeated); a key is better named by --api-key-env
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = flags::header)]
    pub(super) headers: Vec<(String, String)>,

    /// Calls at once to each upstream
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) concurrency: Option<u32>,

    /// Begin no more calls than this, such as 10/s, 600/m or 5000/h
    #[arg(long, value_name = "N/UNIT", value_parser = flags::rate)]
    pub(super) rate: Option<Duration>,

    /// How long one call may take, such as 30s or 10m
    #[arg(long, value_name = "DURATION", value_parser = flags::timeout)]
    pub(super) timeout: Option<Duration>,

    /// How many calls one request may cost, the first included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) max_attempts: Option<u32>,

    /// Ask this model, whatever the requests name
    #[arg(long, value_name = "NAME")]
    pub(super) model: Option<String>,

    /// Put a value into the body of every request (may be repeated), in place of what is there
    #[arg(long = "set", value_name = "KEY=JSON", value_parser = flags::set)]
    pub(super) set: Vec<(String, serde_json::Value)>,

    /// Take lines without a `custom_id`, which become line-1, line-2 and so on by their number, and
    /// bare bodies: {"messages": …}, {"prompt": …}, {"input": …} (embeddings)
    #[arg(long)]
    pub(super) ids: bool,

    /// Send the first N requests only; without it later, the others follow
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: Option<u64>,

    /// Stop once N requests have failed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) max_failures: Option<u64>,

    /// Check all that a run checks, say what would be sent and which answers would be kept, and
    /// change nothing; without configured models, the upstreams are asked which they have
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Show no progress, and say nothing but what is wrong
    #[arg(short, long)]
    pub(super) quiet: bool,

    /// Print a summary as JSON when the run ends, however it ends: on standard output, or on
    /// standard error where the answers go to standard output
    #[arg(long)]
    pub(super) json: bool,

    /// The TOML file to read [default: nightshift.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Send again what failed in an earlier run of this output; its answers are kept
    #[arg(long, conflicts_with = "restart")]
    pub(super) retry_failed: bool,

    /// Forget what an earlier run of this output did, and begin anew: its files stay until the new
    /// ones take their place
    #[arg(long)]
    pub(super) restart: bool,
}

impl RunArgs {
    /// Tells the user something that is no error.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            tell!("{text}");
        }
    }

    pub(super) fn reshape(&self) -> Reshape {
        let mut set: serde_json::Map<_, _> = self.set.iter().cloned().collect();
        if let Some(model) = &self.model {
            set.insert("model".to_owned(), model.clone().into());
        }
        Reshape {
            ids: self.ids,
            set,
            limit: self.limit,
        }
    }

    pub(super) fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            upstream: self.upstream.clone(),
            api_key_env: self.api_key_env.clone(),
            concurrency: self.concurrency.map(|calls| calls as usize),
            headers: self.headers.clone(),
            timeout: self.timeout,
            max_attempts: self.max_attempts,
            ..Overrides::default()
        }
    }
}
