//! Calling model servers: who serves a model, which of them takes a line, one attempt at a time,
//! and what its result means.
//!
//! This room knows nothing of batches, files or the store. It does not wait on behalf of lines
//! either: [`Pool::try_acquire`] says at once whether a line can be sent, [`Pool::changed`] says
//! when to look again, and what to do with an `Attempt` is the caller's affair.
//!
//! | folder | is for |
//! |---|---|
//! | `route` | where the lines of a model go; the numbers of lanes |
//! | `balance` | which target takes the next line; a file a strategy |
//! | `limits` | calls at once, how often a call may begin, bytes in memory |
//! | `target` | the state of upstreams and of models there; where calls begin and end |
//! | `health` | breakers, cooldowns, probes |
//! | `attempt` | one call, how it went, and what its line is to do |
//! | `provider` | how model servers are spoken to; a file a provider |
//! | `transport` | HTTP itself |

mod attempt;
mod backoff;
mod balance;
mod capabilities;
mod health;
mod limits;
mod models;
mod numbers;
mod pool;
mod provider;
mod route;
mod settings;
mod setup;
mod snapshot;
mod target;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod transport;
mod unsupported;

pub use attempt::ages::OldCalls;
pub use attempt::bill::{Bill, BillItem, Tariff};
pub use attempt::call::{Answer, Attempt, Call};
pub use attempt::history::{History, Next};
pub use attempt::result::{CallResult, Regroup};
pub use attempt::timer::Timer;
pub use attempt::trial::Trial;
pub use balance::Strategy;
pub use capabilities::KNOWN_CURRENCY;
pub use health::cooldown::Cooldown;
pub use health::reason::Reason;
pub use limits::auto::{StoredWindow, WindowChange, WindowStatus};
pub use limits::concurrency::Limits;
pub use limits::memory::Reservation;
pub use limits::rate::{
    Grant, LineSize, RateBook, RateLimits, RateRequest, RateStatus, RateTurn, TenantMeters,
};
pub use models::{ModelInfo, is_listed};
pub use pool::Pool;
pub use provider::kind::ProviderKind;
pub use route::pack::Packed;
pub use route::{LaneId, Routes};
pub use settings::{
    CallRate, Capabilities, CapabilitySettings, FailFast, Http2, ModelSettings, Options, Order,
    PackLimits, RateKind, RateLimit, ReasoningKey, RetrySettings, RouteSettings, Settings, Spill,
    TaskSettings, TenantRates, UnsupportedParams, UpstreamKey, UpstreamSettings,
};
#[cfg(test)]
pub use snapshot::ClosedModel;
pub use snapshot::{KeyStatus, LaneStatus, RouteStatus, Skipped, UpstreamState, UpstreamStatus};
pub use target::{Acquired, Permit, Switch};
