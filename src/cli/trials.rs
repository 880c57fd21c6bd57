//! Tiny requests to routes, and what came of them.

use std::io::Write as _;

use super::prices;
use crate::config::Config;
use crate::upstream::{Pool, Trial};

/// Sends one tiny request by each route (of one upstream, if it is named), and prints what came of
/// each. True if all went well.
pub(super) async fn tell(
    pool: &Pool,
    config: &Config,
    upstream: Option<&str>,
) -> std::io::Result<bool> {
    let mut out = std::io::stdout();
    let mut good = true;
    for trial in pool.try_routes(upstream).await {
        let (is_good, text) = in_words(config, &trial);
        good &= is_good;
        let mark = if is_good { "ok  " } else { "FAIL" };
        writeln!(out, "{mark}  call           {text}")?;
    }
    Ok(good)
}

/// Whether a request went well, and such as `llama at gpu-1: 200 in 12 ms, 9 tokens in, 2 out,
/// 0.00004 usd`.
fn in_words(config: &Config, trial: &Trial) -> (bool, String) {
    let Trial {
        model,
        upstream,
        key,
        sent_as,
        outcome,
    } = trial;
    let mut text = format!("{model} at {upstream}");
    if let Some(key) = key {
        text += &format!(" by {key}");
    }
    if sent_as != model {
        text += &format!(" as {sent_as}");
    }
    let answer = match outcome {
        Ok(answer) => answer,
        Err(cause) => return (false, format!("{text}: {cause}")),
    };
    text += &format!(": {} in {} ms", answer.status, answer.took.as_millis());
    if let Some(usage) = answer.usage {
        let (input, output) = (usage.input_tokens, usage.output_tokens);
        text += &format!(", {input} tokens in, {output} out");
        let route = prices::route(config, model, upstream, sent_as);
        if let Some(price) = prices::of_route(config, upstream, sent_as, route).price {
            text += &format!(", {}", prices::cost(config, &price, &usage));
        }
    }
    if let Some(problem) = &answer.problem {
        text += &format!(": {problem}");
    }
    (answer.problem.is_none(), text)
}
