//! Tiny requests to routes, and what came of them.

use std::io::Write as _;

use crate::upstream::{Pool, Trial};

/// Sends one tiny request by each route (of one upstream, if it is named), and prints what came of
/// each. True if all went well.
pub(super) async fn tell(pool: &Pool, upstream: Option<&str>) -> std::io::Result<bool> {
    let mut out = std::io::stdout();
    let mut good = true;
    for trial in pool.try_routes(upstream).await {
        let (is_good, text) = in_words(&trial);
        good &= is_good;
        let mark = if is_good { "ok  " } else { "FAIL" };
        writeln!(out, "{mark}  call           {text}")?;
    }
    Ok(good)
}

/// Whether a request went well, and such as `llama at gpu-1: 200 in 12 ms, 9 tokens in, 2 out`.
fn in_words(trial: &Trial) -> (bool, String) {
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
    }
    if let Some(problem) = &answer.problem {
        text += &format!(": {problem}");
    }
    (answer.problem.is_none(), text)
}
