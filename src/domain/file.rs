//! Files: what they are for, and what that allows.

use serde::{Deserialize, Serialize};

/// How many models the lines of a file may name at most, whatever the configuration says. An upload
/// holds the name and the first lines of each model: about 1 KiB.
pub const MODELS_MAX: usize = 10_000;

/// How many requests a chunk has at most. A chunk ends with the line that brings it to this number.
pub const CHUNK_REQUESTS_MAX: u32 = 512;

/// How many lines a chunk has at most, blank ones included. Lines are numbered within a chunk, and
/// a unit has a bit for each.
pub const CHUNK_LINES_MAX: u32 = 65_536;

/// What an uploaded file is for, or what made it (OpenAI's `purpose`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    #[serde(rename = "assistants")]
    Assistants,
    #[serde(rename = "batch")]
    Batch,
    #[serde(rename = "batch_output")]
    BatchOutput,
    #[serde(rename = "evals")]
    Evals,
    #[serde(rename = "fine-tune")]
    FineTune,
    #[serde(rename = "user_data")]
    UserData,
    #[serde(rename = "vision")]
    Vision,
}

impl Purpose {
    /// The purposes that a user may upload for, in the order in which errors name them.
    pub const UPLOADABLE: [Purpose; 6] = [
        Purpose::Assistants,
        Purpose::Batch,
        Purpose::FineTune,
        Purpose::Vision,
        Purpose::UserData,
        Purpose::Evals,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::Assistants => "assistants",
            Purpose::Batch => "batch",
            Purpose::BatchOutput => "batch_output",
            Purpose::Evals => "evals",
            Purpose::FineTune => "fine-tune",
            Purpose::UserData => "user_data",
            Purpose::Vision => "vision",
        }
    }

    /// The purpose of that name, `batch_output` included.
    #[must_use]
    pub fn parse(name: &str) -> Option<Purpose> {
        Self::UPLOADABLE
            .into_iter()
            .chain([Purpose::BatchOutput])
            .find(|p| p.as_str() == name)
    }

    /// Whether `GET /v1/files/{id}/content` gives the bytes back. OpenAI refuses it for
    /// `assistants`, `user_data` and `vision`.
    #[must_use]
    pub fn downloadable(self) -> bool {
        !matches!(
            self,
            Purpose::Assistants | Purpose::UserData | Purpose::Vision
        )
    }
}

/// Which of a batch's two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Lines that were answered with 2xx.
    Output,
    /// Every other line.
    Error,
}

/// The bounds of `expires_after[seconds]` and `output_expires_after.seconds`.
pub const EXPIRY_SECONDS: std::ops::RangeInclusive<i64> = 3600..=2_592_000;
