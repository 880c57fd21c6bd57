#!/usr/bin/env bash
# Installs what packaging/build.sh makes as a user would, and runs it: the wheel in a fresh virtual
# environment, the archive and the .deb in directories of their own. Builds it first, unless a directory
# with it is named; that takes minutes.
#
# This is the test of the packages. It is run before each release, which is published only if it
# passes, and by whoever changes how packages are made; `cargo test` looks only at the files that they
# are made of.
#
# tests/packages.sh [DIST]
set -euo pipefail
cd "$(dirname "$0")/.."

dist=${1:-}
if [ -z "$dist" ]; then
  packaging/build.sh
  dist=dist
fi
dist=$(realpath "$dist")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)

say() { printf '== %s\n' "$*" >&2; }
fail() {
  say "FAILED: $*"
  exit 1
}

# Has a binary say its version, and run a batch from upload to output.
try() {
  [ "$("$1" --version)" = "nightshift $version" ] || fail "$1 is of another version"
  mkdir "$work/demo" && (cd "$work/demo" && "$1" demo --exit >out 2>log) \
    || { cat "$work/demo/log" >&2; fail "$1 runs no batch"; }
  tail -n 1 "$work/demo/out" | grep -q '^Server: http://' || fail "$1 says no address"
  rm -r "$work/demo"
}

say "the checksums"
(cd "$dist" && sha256sum --quiet --check SHA256SUMS)

say "the wheel, in a fresh virtual environment"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-index "$dist"/*.whl
[ "$("$work/venv/bin/pip" list --format freeze | grep nightshift)" = "nightshift-batch==$version" ]
try "$work/venv/bin/nightshift"

say "the archive"
tar --extract --file "$dist"/nightshift-*-linux.tar.gz --directory "$work"
binary=$(echo "$work"/nightshift-"$version"-*/nightshift)
try "$binary"
newest=$(objdump -T "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
[ "$(printf '%s\n' "$newest" GLIBC_2.17 | sort -V | tail -n 1)" = GLIBC_2.17 ] \
  || fail "the binary needs $newest"
# Nothing but glibc's own libraries.
others=$(objdump -p "$binary" | awk '$1 == "NEEDED" { print $2 }' \
  | grep -v -E '^(ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv))\.so' || true)
[ -z "$others" ] || fail "the binary needs $others"

say "the .deb"
dpkg-deb --extract "$dist"/nightshift_*.deb "$work/deb"
dpkg-deb --control "$dist"/nightshift_*.deb "$work/control"
for file in usr/bin/nightshift usr/sbin/nightshift-as-service usr/lib/systemd/system/nightshift.service \
  etc/nightshift/nightshift.toml etc/nightshift/environment \
  usr/share/doc/nightshift/config.example.toml usr/share/doc/nightshift/copyright; do
  [ -e "$work/deb/$file" ] || [ -e "$work/deb/${file#usr/}" ] || fail "there is no /$file"
done
[ -x "$work/deb/usr/sbin/nightshift-as-service" ] || fail "nightshift-as-service cannot be run"
[ "$(stat -c %a "$work/deb/etc/nightshift/environment")" = 640 ] || fail "all can read the keys"
grep -q adduser "$work/control/postinst" || fail "nobody makes the user"
try "$work/deb/usr/bin/nightshift"
(cd "$work" && deb/usr/bin/nightshift check --config deb/etc/nightshift/nightshift.toml) >&2

say "all well"
