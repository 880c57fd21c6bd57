#!/usr/bin/env bash
# Runs all tests, on SQLite and on Postgres, after installing and starting what they need: a
# Postgres of their own in a temporary directory, PgBouncer, Python with venv, and Node with npm.
# Arguments go to `cargo test`. Set NIGHTSHIFT_TEST_POSTGRES to the URL of a server on which
# databases may be created to use that one instead.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*" >&2; }

install() {
  say "installing: $*"
  if [ "$(id -u)" = 0 ]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
  elif command -v sudo >/dev/null; then
    sudo apt-get update -qq && sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
  else
    say "please install: $*"
    exit 1
  fi
}

postgres_bin() {
  local directory
  for directory in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV) \
                   "$(dirname "$(command -v initdb || echo /none/initdb)")"; do
    if [ -x "$directory/initdb" ] && [ -x "$directory/postgres" ]; then
      echo "$directory"
      return
    fi
  done
}

command -v cc >/dev/null || install build-essential
command -v curl >/dev/null || install curl
python3 -c 'import ensurepip, venv' 2>/dev/null || install python3 python3-venv
{ command -v node && command -v npm; } >/dev/null || install nodejs npm

[ -n "$(postgres_bin)" ] || install postgresql
command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || install pgbouncer
bin=$(postgres_bin)
# For tests that start, stop and restart one of their own.
export NIGHTSHIFT_TEST_POSTGRES_BIN="$bin"
# Postgres refuses to run as root.
if [ "$(id -u)" = 0 ]; then
  id postgres >/dev/null 2>&1 || useradd --system postgres
fi

if [ -z "${NIGHTSHIFT_TEST_POSTGRES:-}" ]; then
  home=$(mktemp -d)
  chmod 755 "$home"
  as=()
  if [ "$(id -u)" = 0 ]; then
    chown postgres "$home"
    as=(setpriv --reuid=postgres --regid="$(id -g postgres)" --clear-groups)
  fi
  stop() {
    (cd / && "${as[@]}" "$bin/pg_ctl" -D "$home/data" -m immediate stop >/dev/null 2>&1) || true
    rm -rf "$home"
  }
  trap stop EXIT
  say "starting Postgres"
  (
    cd /
    "${as[@]}" "$bin/initdb" -D "$home/data" -U postgres -A trust --no-sync -E UTF8 --locale=C >/dev/null
    # Only a socket in its own directory: no port that anybody else could want or reach.
    "${as[@]}" "$bin/pg_ctl" -D "$home/data" -l "$home/log" -w -o \
      "-c listen_addresses='' -k $home -c fsync=off -c max_connections=1000" start >/dev/null
  )
  export NIGHTSHIFT_TEST_POSTGRES="postgres://postgres@localhost/postgres?host=$home"
fi

# Most tests wait for servers most of the time.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$(($(nproc) * 2))}"

status=0
cargo test --locked "$@" || status=$?
exit "$status"
