//! What operators do with upstreams: by HTTP, and by commands.

mod switches;
mod trials;
