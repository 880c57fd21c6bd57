//! Which providers there are.

/// A kind of model server, by the API that it speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProviderKind {
    /// OpenAI's API, which many servers speak.
    #[default]
    OpenAi,
    Anthropic,
    Gemini,
    Mistral,
    Cohere,
}

impl ProviderKind {
    pub const ALL: [ProviderKind; 5] = [
        ProviderKind::OpenAi,
        ProviderKind::Anthropic,
        ProviderKind::Gemini,
        ProviderKind::Mistral,
        ProviderKind::Cohere,
    ];

    /// As the configuration writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ProviderKind::OpenAi => "openai",
            ProviderKind::Anthropic => "anthropic",
            ProviderKind::Gemini => "gemini",
            ProviderKind::Mistral => "mistral",
            ProviderKind::Cohere => "cohere",
        }
    }

    /// The header in which a key is sent, unless `auth_header` names another.
    #[must_use]
    pub fn key_header(self) -> &'static str {
        match self {
            ProviderKind::OpenAi | ProviderKind::Mistral | ProviderKind::Cohere => "authorization",
            ProviderKind::Anthropic => "x-api-key",
            ProviderKind::Gemini => "x-goog-api-key",
        }
    }

    /// Whether the configuration may choose a version of the API.
    #[must_use]
    pub fn has_versions(self) -> bool {
        self == ProviderKind::Anthropic
    }

    /// Whether long answers are asked for as streams unless the configuration says otherwise.
    #[must_use]
    pub fn streams_by_itself(self) -> bool {
        self == ProviderKind::Anthropic
    }

    /// Whether lines for chat completions are sent in a form of the provider's own.
    #[must_use]
    pub fn translates(self) -> bool {
        self != ProviderKind::OpenAi
    }
}
