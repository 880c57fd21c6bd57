//! The processes that share a store: their leases, their shares of limits, what
//! operators set for all of them, their wake-ups.

mod rates;
mod replicas;
mod shares;
mod switches;
mod tasks;
mod wakeups;
mod windows;

pub use rates::{RateEntry, RateGrant, RateRow};
pub use replicas::{Configuration, Incumbent, Replica};
pub use shares::{CooldownRow, ShareBook, ShareEntry};
pub use switches::{SwitchRow, Undrained};
pub use windows::{WindowBook, WindowRow};
