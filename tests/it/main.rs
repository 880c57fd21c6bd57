//! Nightshift from outside: real servers, real databases, a simulated upstream.

mod bad_input;
mod batches;
mod retries;
mod round_trips;
mod sdk;
mod store;
mod support;
