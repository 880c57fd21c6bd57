//! Nightshift from outside: real servers, real databases, a simulated upstream.

mod architecture;
mod bad_input;
mod batches;
mod broken_heads;
mod commands;
mod crashes;
mod holding_back;
mod holding_up;
mod openapi;
mod packaging;
mod readme;
mod replicas;
mod retention;
mod retries;
mod roles;
mod round_trips;
mod safety;
mod sdk;
mod seeing;
mod store;
mod support;
mod trouble;
mod trouble_upstream;
mod uploads;
