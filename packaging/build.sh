#!/usr/bin/env bash
# Builds what users install, for one target, into dist/:
#
#   nightshift-VERSION-ARCH-linux.tar.gz     the binary, which needs no library but a glibc of 2.17
#                                            or newer: every distribution with glibc since 2014
#   nightshift_VERSION_ARCH.deb              the binary with a systemd unit
#   nightshift_batch-VERSION-….whl           a wheel for pip and uvx, with the same binary
#
# packaging/build.sh [TARGET]    such as aarch64-unknown-linux-gnu; this machine's without it
#
# Needs Rust with the target's standard library, Python with venv, and the network: zig, which links
# against the old glibc, maturin and cargo-deb are installed in target/packaging. A release build takes
# minutes. tests/packages.sh installs and tries what this makes.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-$(uname -m)-unknown-linux-gnu}
arch=${target%%-*}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
dist=dist
tools=target/packaging

say() { printf '== %s\n' "$*" >&2; }

say "tools"
[ -x "$tools/venv/bin/pip" ] || python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet --disable-pip-version-check \
  'maturin==1.16.0' 'ziglang==0.17.1'
[ -x "$tools/bin/cargo-deb" ] \
  || cargo install --quiet --locked --root "$tools" --version 3.8.0 cargo-deb
PATH="$PWD/$tools/venv/bin:$PWD/$tools/bin:$PATH"

say "wheel for $target"
rm -rf "$dist"
# One build is for all three: the wheel's binary is taken for the others. Without symbols it is a
# third of the size.
CARGO_PROFILE_RELEASE_STRIP=symbols maturin build --release --locked --zig \
  --compatibility manylinux2014 --target "$target" --out "$dist"
binary=target/$target/release/nightshift

say "archive"
name=nightshift-$version-$arch-linux
mkdir -p "$tools/$name"
cp "$binary" README.md CHANGELOG.md LICENSE LICENSE-MIT LICENSE-APACHE config.example.toml \
  packaging/deb/nightshift.service "$tools/$name/"
tar --create --gzip --file "$dist/$name.tar.gz" --directory "$tools" \
  --owner=0 --group=0 --sort=name "$name"
rm -r "${tools:?}/$name"

say ".deb"
cargo deb --no-build --no-strip --target "$target" --output "$dist/"

(cd "$dist" && sha256sum ./* >SHA256SUMS)
say "made"
ls -l "$dist" >&2
