//! Nightshift from outside: real servers, real databases, a simulated upstream.

mod architecture;
mod backpressure;
mod bad_input;
mod batches;
mod commands;
mod crashes;
mod database_faults;
mod fairness;
mod malformed_requests;
mod observability;
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
mod small_batches;
mod store;
mod support;
mod tails;
mod uploads;
mod upstream_faults;
