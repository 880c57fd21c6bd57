//! Answers in OpenAI's shapes. An answer follows from the options, the endpoint and the body's
//! bytes alone: its ids and times too.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::{Value, json};

use super::call::Call;
use super::options::Options;
use super::rate::Need;
use super::shape::{
    CachedTokens, ChatChoice, ChatCompletion, Completion, Embedding, Embeddings, EmbeddingsUsage,
    IncompleteDetails, Message, MessagesMessage, MessagesUsage, OutputMessage, OutputText,
    ReasoningTokens, Response, ResponseUsage, TextBlock, TextChoice, Usage, Vector,
};
use super::text::{Length, Random, compose};

const DEFAULT_DIMENSIONS: usize = 1536;
const DEFAULT_IMAGE_BYTES: usize = 1024;
/// More images, inputs or dimensions than this in one answer are not made.
const MOST_ITEMS: usize = 10_000;

/// What the simulator answers calls to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    ChatCompletions,
    Completions,
    Responses,
    Messages,
    Embeddings,
    Moderations,
    ImageGenerations,
    ImageEdits,
    Videos,
    /// Not OpenAI's: what many model servers have beside.
    Rerank,
}

impl Endpoint {
    /// The endpoint of a path; `None` if the simulator does not know the path.
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::ChatCompletions,
            "/v1/completions" => Self::Completions,
            "/v1/responses" => Self::Responses,
            "/v1/messages" => Self::Messages,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/moderations" => Self::Moderations,
            "/v1/images/generations" => Self::ImageGenerations,
            "/v1/images/edits" => Self::ImageEdits,
            "/v1/videos" => Self::Videos,
            "/v1/rerank" => Self::Rerank,
            _ => return None,
        })
    }

    /// The model of a request that names none, where it may.
    pub(super) fn default_model(self) -> Option<&'static str> {
        match self {
            Self::Moderations => Some("omni-moderation-latest"),
            Self::ImageGenerations | Self::ImageEdits => Some("gpt-image-1"),
            Self::Videos => Some("sora-2"),
            _ => None,
        }
    }

    pub(super) fn writes_text(self) -> bool {
        matches!(
            self,
            Self::ChatCompletions | Self::Completions | Self::Responses | Self::Messages
        )
    }
}

/// An answer about to be made: what it follows from, and how long it will be.
pub(super) struct Draft<'a> {
    endpoint: Endpoint,
    call: &'a Call,
    model: &'a str,
    seed: u64,
    random: Random,
    length: Length,
    prompt_tokens: usize,
    /// `None`: nothing is said of it.
    cached_tokens: Option<usize>,
    finish_reason: &'static str,
    /// The tokens of the text that was written.
    written: usize,
}

impl<'a> Draft<'a> {
    /// `fingerprint` is of the body under the options' seed.
    pub(super) fn new(
        options: &Options,
        endpoint: Endpoint,
        call: &'a Call,
        model: &'a str,
        fingerprint: u64,
        body_bytes: usize,
    ) -> Self {
        let mut random = Random::new(fingerprint);
        // From half of the mean to one and a half of it.
        let mean = u64::try_from(options.answer_tokens).unwrap_or(u64::MAX);
        let drawn = (mean / 2).saturating_add(random.next() % mean.saturating_add(1));
        let drawn = usize::try_from(drawn).unwrap_or(usize::MAX);
        let limit = call.token_limit().unwrap_or(usize::MAX);
        let length = match call.simulate.bytes {
            Some(bytes) => Length::Bytes(bytes),
            None => Length::Tokens(drawn.min(limit)),
        };
        Self {
            endpoint,
            call,
            model,
            seed: options.seed,
            random,
            length,
            prompt_tokens: match endpoint {
                // As many whether inputs come alone or together.
                Endpoint::Embeddings => call.inputs().iter().map(|input| input.tokens).sum(),
                // English has about four bytes a token.
                _ => body_bytes.div_ceil(4),
            },
            cached_tokens: None,
            finish_reason: if drawn > limit { "length" } else { "stop" },
            written: 0,
        }
    }

    /// So many tokens of the input were computed before.
    pub(super) fn cached(self, cached_tokens: Option<usize>) -> Self {
        Self {
            cached_tokens,
            ..self
        }
    }

    /// About how many tokens a model would have to write.
    pub(super) fn tokens(&self) -> usize {
        match self.length {
            _ if !self.endpoint.writes_text() => 0,
            Length::Tokens(tokens) => tokens,
            Length::Bytes(bytes) => bytes.div_ceil(6),
        }
    }

    /// What the call counts for.
    pub(super) fn need(&self) -> Need {
        let count = |tokens: usize| u64::try_from(tokens).unwrap_or(u64::MAX);
        Need {
            input: count(self.prompt_tokens),
            output: count(self.tokens()),
        }
    }

    /// The answer's bytes, and what it says that it used.
    pub(super) fn write(mut self) -> serde_json::Result<(Bytes, Need)> {
        let number = self.random.next();
        let created = 1_750_000_000 + number % 10_000_000;
        let id = self.random.id();
        let answer = match self.endpoint {
            Endpoint::ChatCompletions => serde_json::to_vec(&self.chat_completion(&id, created)),
            Endpoint::Completions => serde_json::to_vec(&self.completion(&id, created)),
            Endpoint::Responses => serde_json::to_vec(&self.response(&id, created)),
            Endpoint::Messages => serde_json::to_vec(&self.message(&id)),
            Endpoint::Embeddings => serde_json::to_vec(&self.embeddings()),
            Endpoint::Moderations => serde_json::to_vec(&self.moderation(&id)),
            Endpoint::ImageGenerations | Endpoint::ImageEdits => {
                serde_json::to_vec(&self.images(created))
            }
            Endpoint::Videos => serde_json::to_vec(&self.video(&id, created)),
            Endpoint::Rerank => serde_json::to_vec(&self.ranking(&id)),
        };
        let count = |tokens: usize| u64::try_from(tokens).unwrap_or(u64::MAX);
        let says_it = self.endpoint.writes_text()
            || matches!(self.endpoint, Endpoint::Embeddings | Endpoint::Rerank);
        let used = Need {
            input: count(self.prompt_tokens),
            output: count(self.written),
        };
        Ok((answer?.into(), if says_it { used } else { Need::default() }))
    }

    /// A text, and its tokens.
    fn compose(&mut self) -> (String, usize) {
        let (text, tokens) = compose(&mut self.random, self.length);
        self.written = tokens;
        (text, tokens)
    }

    fn chat_completion(&mut self, id: &str, created: u64) -> ChatCompletion<'a> {
        let (content, tokens) = self.compose();
        ChatCompletion {
            id: format!("chatcmpl-{id}"),
            object: "chat.completion",
            created,
            model: self.model,
            choices: [ChatChoice {
                index: 0,
                message: Message {
                    role: "assistant",
                    content,
                    refusal: None,
                },
                logprobs: None,
                finish_reason: self.finish_reason,
            }],
            usage: self.usage(tokens),
        }
    }

    fn completion(&mut self, id: &str, created: u64) -> Completion<'a> {
        let (text, tokens) = self.compose();
        Completion {
            id: format!("cmpl-{id}"),
            object: "text_completion",
            created,
            model: self.model,
            choices: [TextChoice {
                text,
                index: 0,
                logprobs: None,
                finish_reason: self.finish_reason,
            }],
            usage: self.usage(tokens),
        }
    }

    fn response(&mut self, id: &str, created: u64) -> Response<'a> {
        let (text, tokens) = self.compose();
        let is_whole = self.finish_reason == "stop";
        let status = if is_whole { "completed" } else { "incomplete" };
        Response {
            id: format!("resp_{id}"),
            object: "response",
            created_at: created,
            status,
            error: None,
            incomplete_details: (!is_whole).then_some(IncompleteDetails {
                reason: "max_output_tokens",
            }),
            model: self.model,
            output: [OutputMessage {
                id: format!("msg_{id}"),
                r#type: "message",
                status,
                role: "assistant",
                content: [OutputText {
                    r#type: "output_text",
                    text,
                    annotations: [],
                }],
            }],
            usage: ResponseUsage {
                input_tokens: self.prompt_tokens,
                input_tokens_details: CachedTokens {
                    cached_tokens: self.cached_tokens.unwrap_or(0),
                },
                output_tokens: tokens,
                output_tokens_details: ReasoningTokens {
                    reasoning_tokens: 0,
                },
                total_tokens: self.prompt_tokens.saturating_add(tokens),
            },
        }
    }

    fn message(&mut self, id: &str) -> MessagesMessage<'a> {
        let (text, tokens) = self.compose();
        let is_whole = self.finish_reason == "stop";
        MessagesMessage {
            id: format!("msg_{id}"),
            r#type: "message",
            role: "assistant",
            model: self.model,
            content: [TextBlock {
                r#type: "text",
                text,
            }],
            stop_reason: if is_whole { "end_turn" } else { "max_tokens" },
            stop_sequence: None,
            usage: MessagesUsage {
                input_tokens: self.prompt_tokens,
                cache_creation_input_tokens: 0,
                cache_read_input_tokens: 0,
                output_tokens: tokens,
            },
        }
    }

    fn embeddings(&self) -> Embeddings<'a> {
        let dimensions = self.call.dimensions.unwrap_or(DEFAULT_DIMENSIONS);
        let is_base64 = self.call.encoding_format.as_deref() == Some("base64");
        let inputs = self.call.inputs().iter().take(MOST_ITEMS).enumerate();
        let data = inputs
            .map(|(index, input)| {
                let mut random = Random::new(self.seed ^ input.fingerprint);
                let vector = unit_vector(&mut random, dimensions.min(MOST_ITEMS));
                let embedding = if is_base64 {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    Vector::Base64(BASE64.encode(bytes))
                } else {
                    Vector::Floats(vector)
                };
                Embedding {
                    object: "embedding",
                    index,
                    embedding,
                }
            })
            .collect();
        Embeddings {
            object: "list",
            data,
            model: self.model,
            usage: EmbeddingsUsage {
                prompt_tokens: self.prompt_tokens,
                total_tokens: self.prompt_tokens,
            },
        }
    }

    fn moderation(&mut self, id: &str) -> Value {
        const CATEGORIES: [&str; 13] = [
            "harassment",
            "harassment/threatening",
            "hate",
            "hate/threatening",
            "illicit",
            "illicit/violent",
            "self-harm",
            "self-harm/instructions",
            "self-harm/intent",
            "sexual",
            "sexual/minors",
            "violence",
            "violence/graphic",
        ];
        let results: Vec<Value> = (0..self.call.inputs().len().min(MOST_ITEMS))
            .map(|_| {
                let scores = CATEGORIES.map(|name| (name, self.random.share().powi(30)));
                let flagged = scores.iter().any(|(_, score)| *score > 0.9);
                json!({
                    "flagged": flagged,
                    "categories": object(scores.map(|(name, score)| (name, json!(score > 0.9)))),
                    "category_scores": object(scores.map(|(name, score)| (name, json!(score)))),
                    "category_applied_input_types": object(CATEGORIES.map(|c| (c, json!(["text"])))),
                })
            })
            .collect();
        json!({"id": format!("modr-{id}"), "model": self.model, "results": results})
    }

    /// Noise behind the first bytes of a PNG: of an image's size, but no image.
    fn images(&mut self, created: u64) -> Value {
        let bytes = self.call.simulate.bytes.unwrap_or(DEFAULT_IMAGE_BYTES);
        let images = self.call.n.unwrap_or(1).min(MOST_ITEMS);
        let data: Vec<Value> = (0..images)
            .map(|_| {
                let mut image = b"\x89PNG\r\n\x1a\n".to_vec();
                while image.len() < bytes {
                    image.extend_from_slice(&self.random.bytes::<8>());
                }
                image.truncate(bytes);
                json!({"b64_json": BASE64.encode(image)})
            })
            .collect();
        let output_tokens = images.saturating_mul(272);
        json!({
            "created": created,
            "data": data,
            "output_format": "png",
            "usage": {
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"text_tokens": self.prompt_tokens, "image_tokens": 0},
                "output_tokens": output_tokens,
                "total_tokens": self.prompt_tokens.saturating_add(output_tokens),
            },
        })
    }

    fn video(&self, id: &str, created: u64) -> Value {
        json!({
            "id": format!("video_{id}"),
            "object": "video",
            "model": self.model,
            "status": "completed",
            "progress": 100,
            "created_at": created,
            "completed_at": created + 60,
            "expires_at": created + 86_400,
            "size": "720x1280",
            "seconds": "4",
            "remixed_from_video_id": null,
            "error": null,
        })
    }

    /// The documents by how near they are to the query.
    fn ranking(&mut self, id: &str) -> Value {
        let documents = self.call.documents().min(MOST_ITEMS);
        let mut results: Vec<(usize, f64)> = (0..documents)
            .map(|index| (index, self.random.share()))
            .collect();
        results.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        results.truncate(self.call.top_n.unwrap_or(usize::MAX));
        let results: Vec<Value> = results
            .iter()
            .map(|(index, score)| json!({"index": index, "relevance_score": score}))
            .collect();
        json!({
            "id": format!("rerank-{id}"),
            "model": self.model,
            "results": results,
            "usage": {"total_tokens": self.prompt_tokens},
        })
    }

    fn usage(&self, completion_tokens: usize) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            total_tokens: self.prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: self
                .cached_tokens
                .map(|cached_tokens| CachedTokens { cached_tokens }),
        }
    }
}

/// A direction: its length is 1, as OpenAI's embeddings have it.
fn unit_vector(random: &mut Random, dimensions: usize) -> Vec<f32> {
    let mut draw = || f32::from(i16::from_le_bytes(random.bytes())) / f32::from(i16::MAX);
    let vector: Vec<f32> = (0..dimensions).map(|_| draw()).collect();
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector
        .iter()
        .map(|x| x / length.max(f32::EPSILON))
        .collect()
}

fn object<const N: usize>(entries: [(&str, Value); N]) -> Value {
    entries
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
