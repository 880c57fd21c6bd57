//! Why lines are not sent to an upstream, or to a model at an upstream.

/// Why a breaker is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// 429: too much for this model now.
    Limited,
    /// 503, or what a gateway says for a server that is not there.
    Unavailable,
    /// One failure after the other, of lines that had not failed before.
    Failing,
    /// Nobody answers at the address.
    Unreachable,
    /// 401: the key is missing or wrong.
    KeyRefused,
    /// 403: the key may not use this model.
    Refused,
    /// 402, or a 429 that says that the money is spent.
    Unpaid,
    /// A redirect, or a 404 that says that the path is not there.
    Misdirected,
    /// The server does not have the model.
    ModelMissing,
}

impl Reason {
    /// Whether only a person can mend it.
    #[must_use]
    pub fn needs_a_person(self) -> bool {
        !matches!(
            self,
            Reason::Limited | Reason::Unavailable | Reason::Failing | Reason::Unreachable
        )
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Limited => "limited",
            Reason::Unavailable => "unavailable",
            Reason::Failing => "failing",
            Reason::Unreachable => "unreachable",
            Reason::KeyRefused => "key_refused",
            Reason::Refused => "refused",
            Reason::Unpaid => "unpaid",
            Reason::Misdirected => "misdirected",
            Reason::ModelMissing => "model_missing",
        }
    }

    /// What an operator is to look at.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Reason::Limited => "its rate limit, or the concurrency of this upstream or model here",
            Reason::Unavailable | Reason::Failing => "its own log",
            Reason::Unreachable => "whether it runs, and its base_url",
            Reason::KeyRefused => "its api_key_env or api_key_file: the key is missing or wrong",
            Reason::Refused => "what its key is allowed to do",
            Reason::Unpaid => "its account: it asks to be paid, or its quota is spent",
            Reason::Misdirected => "its base_url: the path is not there",
            Reason::ModelMissing => "the name of the model",
        }
    }
}
