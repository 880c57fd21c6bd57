//! Answers as streams of events: what a plain answer says, a word at a time.

use std::time::Duration;
use std::vec;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use hyper::body::Frame;
use serde_json::{Map, Value, json};

use super::answer::Endpoint;
use super::ending::{Cut, Ending, FrameOrCut};
use super::stats::{End, OpenCall};

/// A streamed answer.
pub(super) struct Events {
    events: Vec<Bytes>,
    /// Between two events.
    pace: Duration,
    ending: Ending,
}

impl Events {
    /// The events of a plain answer, `pace` apart. `None`: the answer is none that streams.
    /// `has_usage`: the tokens are told in a last chunk.
    pub(super) fn of(
        endpoint: Endpoint,
        answer: &[u8],
        has_usage: bool,
        (pace, ending): (Duration, Ending),
    ) -> Option<Self> {
        let Ok(Value::Object(answer)) = serde_json::from_slice(answer) else {
            return None;
        };
        let events = match endpoint {
            Endpoint::ChatCompletions => chunks(answer, "chat.completion.chunk", has_usage)?,
            Endpoint::Completions => chunks(answer, "text_completion", has_usage)?,
            Endpoint::Responses => events(&Value::Object(answer))?,
            _ => return None,
        };
        Some(Self {
            events,
            pace,
            ending,
        })
    }

    /// The events in time. `open`: closed behind the last one.
    pub(super) fn into_frames(self, open: OpenCall) -> BoxStream<'static, FrameOrCut> {
        let left = match self.ending {
            Ending::Whole => usize::MAX,
            Ending::Stalls | Ending::Breaks => self.events.len() / 2,
        };
        let course = Course {
            events: self.events.into_iter(),
            left,
            pace: self.pace,
            ending: self.ending,
            open: Some(open),
        };
        let frames = stream::unfold(course, async |mut course| {
            let frame = course.next().await?;
            Some((frame, course))
        });
        frames.boxed()
    }
}

/// A stream on its way.
struct Course {
    events: vec::IntoIter<Bytes>,
    /// How many events come before the stream stalls or breaks.
    left: usize,
    pace: Duration,
    ending: Ending,
    open: Option<OpenCall>,
}

impl Course {
    async fn next(&mut self) -> Option<FrameOrCut> {
        if self.left == 0 {
            if self.ending == Ending::Stalls {
                std::future::pending::<()>().await;
            }
            // Lets what was written leave first.
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.open.take()?.close(End::Cut);
            return Some(Err(Cut));
        }
        self.left -= 1;
        let Some(event) = self.events.next() else {
            self.open.take()?.close(End::Status(200));
            return None;
        };
        if !self.pace.is_zero() {
            tokio::time::sleep(self.pace).await;
        }
        Some(Ok(Frame::data(event)))
    }
}

fn event(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// A text in pieces.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(' ')
}

/// A chat or a completion in chunks.
fn chunks(mut answer: Map<String, Value>, object: &str, has_usage: bool) -> Option<Vec<Bytes>> {
    let choice = answer.remove("choices")?.get_mut(0)?.take();
    let usage = answer.remove("usage");
    answer.insert("object".to_owned(), object.into());
    let message = choice.get("message");
    let text = message.map_or(&choice["text"], |message| &message["content"]);
    let text = text.as_str()?;
    let chunk = |choices: Value, usage: Option<&Value>| {
        let mut chunk = answer.clone();
        chunk.insert("choices".to_owned(), choices);
        if has_usage {
            chunk.insert("usage".to_owned(), usage.cloned().unwrap_or_default());
        }
        event(&Value::Object(chunk))
    };
    let piece = |piece: &str, reason: Value| {
        let mut choice = json!({"index": 0, "logprobs": null, "finish_reason": reason});
        match (message, piece) {
            (Some(_), "") => choice["delta"] = json!({}),
            (Some(_), piece) => choice["delta"] = json!({"content": piece}),
            (None, piece) => choice["text"] = piece.into(),
        }
        chunk(json!([choice]), None)
    };
    let mut events = Vec::new();
    if message.is_some() {
        let delta = json!({"role": "assistant", "content": "", "refusal": null});
        let first = json!({
            "index": 0, "delta": delta, "logprobs": null, "finish_reason": null
        });
        events.push(chunk(json!([first]), None));
    }
    events.extend(words(text).map(|word| piece(word, Value::Null)));
    events.push(piece("", choice["finish_reason"].clone()));
    if has_usage {
        events.push(chunk(json!([]), usage.as_ref()));
    }
    events.push(Bytes::from_static(b"data: [DONE]\n\n"));
    Some(events)
}

/// A response in events, of which the last has it whole.
fn events(response: &Value) -> Option<Vec<Bytes>> {
    let text = response.pointer("/output/0/content/0/text")?.as_str()?;
    let mut begun = response.clone();
    begun["status"] = "in_progress".into();
    begun["output"] = json!([]);
    begun["usage"] = Value::Null;
    let created = json!({"type": "response.created", "response": begun});
    let deltas = words(text).map(|word| {
        json!({
            "type": "response.output_text.delta", "output_index": 0, "content_index": 0,
            "delta": word,
        })
    });
    let status = response["status"].as_str().unwrap_or("completed");
    let last = json!({"type": format!("response.{status}"), "response": response});
    let all = std::iter::once(created).chain(deltas).chain([last]);
    let numbered = all.enumerate().map(|(number, mut data)| {
        data["sequence_number"] = number.into();
        let kind = data["type"].as_str().unwrap_or_default();
        Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))
    });
    Some(numbered.collect())
}
