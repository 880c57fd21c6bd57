# What is done again and again. `just` lists it; https://just.systems has the tool. Nothing here is
# needed: each line can be typed.

[private]
default:
    @just --list

# all that a change must pass, as CI runs it
check:
    .ci/run

# format everything
fmt:
    cargo fmt --all

# what clippy says, as CI asks it
lint:
    cargo clippy --locked --workspace --all-targets -- -D warnings

# all tests on both databases; arguments go to `cargo test`
test *args:
    tests/run.sh {{ args }}

# the integration tests whose names contain a word
it name:
    tests/run.sh --test it -- {{ name }}

# the unit tests whose names contain a word: no database needed
unit name="":
    cargo test --locked --lib -- {{ name }}

# the rooms' imports
rooms:
    cargo test --locked --test it -- architecture

# write the OpenAPI document anew
openapi:
    cargo run --locked -q -- openapi > openapi/openapi.json

# a server with a simulated model server, to try
demo:
    cargo run --locked --release -- demo

# the benchmark, quick: to look at only
bench-quick *args:
    cargo run --release -p bench -- --quick {{ args }}

# licences, advisories and sources of all crates (needs cargo-deny)
deny:
    cargo deny check

# the wheel, the archive and the .deb, built, installed and run
packages:
    tests/packages.sh
