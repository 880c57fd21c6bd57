//! Calling model servers.
