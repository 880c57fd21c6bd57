//! The HTTP server: who gets a connection, for how long, and on which threads.

mod accept;
mod connection;
mod places;
#[cfg(test)]
mod tests;
mod threads;
mod turn;

pub use accept::serve;
pub use threads::Threads;
