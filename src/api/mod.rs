//! OpenAI's HTTP.
