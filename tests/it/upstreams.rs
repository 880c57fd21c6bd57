//! What operators do with upstreams: by HTTP, and by commands.

mod keys;
mod switches;
mod trials;
