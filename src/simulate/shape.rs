//! The answers that are asked for in great numbers, as types: written without a tree of values.

use serde::Serialize;

#[derive(Serialize)]
pub(super) struct ChatCompletion<'a> {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: [ChatChoice; 1],
    pub usage: Usage,
}

#[derive(Serialize)]
pub(super) struct ChatChoice {
    pub index: u32,
    pub message: Message,
    pub logprobs: Option<()>,
    pub finish_reason: &'static str,
}

#[derive(Serialize)]
pub(super) struct Message {
    pub role: &'static str,
    pub content: String,
    pub refusal: Option<()>,
}

#[derive(Serialize)]
pub(super) struct Completion<'a> {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: [TextChoice; 1],
    pub usage: Usage,
}

#[derive(Serialize)]
pub(super) struct TextChoice {
    pub text: String,
    pub index: u32,
    pub logprobs: Option<()>,
    pub finish_reason: &'static str,
}

#[derive(Serialize)]
pub(super) struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<CachedTokens>,
}

#[derive(Serialize)]
pub(super) struct Response<'a> {
    pub id: String,
    pub object: &'static str,
    pub created_at: u64,
    pub status: &'static str,
    pub error: Option<()>,
    pub incomplete_details: Option<IncompleteDetails>,
    pub model: &'a str,
    pub output: [OutputMessage; 1],
    pub usage: ResponseUsage,
}

#[derive(Serialize)]
pub(super) struct IncompleteDetails {
    pub reason: &'static str,
}

#[derive(Serialize)]
pub(super) struct OutputMessage {
    pub id: String,
    pub r#type: &'static str,
    pub status: &'static str,
    pub role: &'static str,
    pub content: [OutputText; 1],
}

#[derive(Serialize)]
pub(super) struct OutputText {
    pub r#type: &'static str,
    pub text: String,
    pub annotations: [(); 0],
}

#[derive(Serialize)]
pub(super) struct ResponseUsage {
    pub input_tokens: usize,
    pub input_tokens_details: CachedTokens,
    pub output_tokens: usize,
    pub output_tokens_details: ReasoningTokens,
    pub total_tokens: usize,
}

#[derive(Serialize)]
pub(super) struct CachedTokens {
    pub cached_tokens: usize,
}

#[derive(Serialize)]
pub(super) struct ReasoningTokens {
    pub reasoning_tokens: usize,
}

/// The answer of Anthropic's Messages API.
#[derive(Serialize)]
pub(super) struct MessagesMessage<'a> {
    pub id: String,
    pub r#type: &'static str,
    pub role: &'static str,
    pub model: &'a str,
    pub content: [TextBlock; 1],
    pub stop_reason: &'static str,
    pub stop_sequence: Option<()>,
    pub usage: MessagesUsage,
}

#[derive(Serialize)]
pub(super) struct TextBlock {
    pub r#type: &'static str,
    pub text: String,
}

#[derive(Serialize)]
pub(super) struct MessagesUsage {
    pub input_tokens: usize,
    pub cache_creation_input_tokens: usize,
    pub cache_read_input_tokens: usize,
    pub output_tokens: usize,
}

#[derive(Serialize)]
pub(super) struct Embeddings<'a> {
    pub object: &'static str,
    pub data: Vec<Embedding>,
    pub model: &'a str,
    pub usage: EmbeddingsUsage,
}

#[derive(Serialize)]
pub(super) struct Embedding {
    pub object: &'static str,
    pub index: usize,
    pub embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
pub(super) struct EmbeddingsUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}
