//! Against scripted servers.
