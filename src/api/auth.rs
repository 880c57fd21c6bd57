//! Who asks: API keys, and what stands in for them where none are needed.

mod authenticate;
mod caller;
mod keys;
mod last_use;
mod lately;
mod operators;
mod state;

pub use authenticate::DEFAULT_TENANT;
pub(super) use authenticate::{API_KEY, authenticate};
pub use caller::{Admin, BatchCaller, Caller, Scraper, UsageCaller};
pub(super) use keys::KEY_BEGINNING;
pub use keys::new_key;
pub use state::Auth;
