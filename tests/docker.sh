#!/usr/bin/env bash
# Builds the image, brings up docker-compose.yml with two workers and a simulated model server, and
# sends batches through it with the official Python SDK while one worker is killed, and while all
# is stopped and started again. Not part of `cargo test`: it wants Docker, Compose and Python.
#
#   tests/docker.sh
#   COMPOSE=docker-compose tests/docker.sh      # Compose 1.29 instead of `docker compose`
#   LINES_SENT=20000 tests/docker.sh
#   BUILT=yes tests/docker.sh                   # the image is there already
#
# It leaves the image `nightshift`, and removes all else that it made.
set -euo pipefail
cd "$(dirname "$0")/.."

lines=${LINES_SENT:-4000}
export NIGHTSHIFT_PORT=${NIGHTSHIFT_PORT:-18080}
home=$(mktemp -d)
project=nightshift-test-$$

say() { printf '== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
compose() { ${COMPOSE:-docker compose} --project-directory "$home" --project-name "$project" \
  -f "$home/docker-compose.yml" -f "$home/docker-compose.override.yml" "$@"; }
containers() { docker ps --all --quiet --filter "label=com.docker.compose.project=$project" \
  ${1:+--filter "label=com.docker.compose.service=$1"}; }
inspect() { docker inspect --format "$1" "$2"; }
calls() { docker exec "$(containers simulator)" bash -c 'exec 3<>/dev/tcp/127.0.0.1/8081
  printf "GET /stats HTTP/1.0\r\n\r\n" >&3; grep -om1 "\"calls\": *[0-9]*" <&3 | head -1'; }
batch() { "$home/venv/bin/python" tests/docker/batch.py "$@"; }

finish() {
  local status=$?
  [ "$status" = 0 ] || compose logs --tail 30 || true
  compose down --volumes --timeout 5 >/dev/null 2>&1 || true
  rm -rf "$home"
}
trap finish EXIT

until_healthy() {
  local deadline=$((SECONDS + 60)) id
  for id in $(containers api) $(containers worker); do
    # Those that were killed on purpose stay away.
    [ "$(inspect '{{.State.Running}}' "$id")" = true ] || continue
    until [ "$(inspect '{{.State.Health.Status}}' "$id")" = healthy ]; do
      [ "$SECONDS" -lt "$deadline" ] || fail "$id is not healthy"
      sleep 1
    done
  done
}

if [ -z "${BUILT:-}" ]; then
  say "building"
  docker build --tag nightshift .
fi
say "the image has $(docker image inspect --format '{{.Size}}' nightshift) bytes"

say "a change in src/ leaves the layer of dependencies as it is"
mkdir "$home/changed"
cp -R Cargo.toml Cargo.lock config.example.toml bench migrations src Dockerfile .dockerignore \
  "$home/changed"
echo '// changed' >> "$home/changed/src/lib.rs"
before=$(docker build --quiet --target dependencies .)
after=$(docker build --quiet --target dependencies "$home/changed")
[ "$before" = "$after" ] || fail "it was made anew: $before, $after"

say "preparing the client"
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --requirement tests/sdk/python/requirements.txt
cp docker-compose.yml "$home"
key=$(openssl rand -hex 24)
cat > "$home/.env" <<EOF
NIGHTSHIFT_UPSTREAM=http://simulator:8081/v1
NIGHTSHIFT_KEY=$key
POSTGRES_PASSWORD=$(openssl rand -hex 24)
EOF
cat > "$home/docker-compose.override.yml" <<'EOF'
services:
  simulator:
    image: nightshift
    command: ["simulate", "--listen", "0.0.0.0:8081", "--latency", "1s", "--latency-jitter", "500ms"]
    healthcheck:
      disable: true
  # So that the simulator is stopped last, and calls in flight can finish.
  worker:
    depends_on:
      simulator:
        condition: service_started
EOF
export OPENAI_BASE_URL=http://127.0.0.1:$NIGHTSHIFT_PORT/v1 OPENAI_API_KEY=$key

say "docker compose up, with two workers"
compose up --detach --no-build --scale worker=2
until_healthy
[ "$(containers worker | wc -l)" = 2 ] || fail "there are not two workers"

say "not root, and nothing can be written but /tmp"
for id in $(containers api) $(containers worker); do
  [ "$(docker exec "$id" id -u)" = 10001 ] || fail "$id runs as another user"
  [ "$(inspect '{{.HostConfig.ReadonlyRootfs}}' "$id")" = true ] || fail "$id can be written"
  if docker exec "$id" touch /data/here 2>/dev/null; then fail "$id was written"; fi
  if docker exec --user 0 "$id" touch /usr/local/here 2>/dev/null; then fail "$id was written"; fi
  docker exec "$id" touch /tmp/here
done

say "a batch of $lines lines, and one of the two workers killed on the way"
first=$(batch submit "$lines")
batch reached "$first" $((lines / 4))
victim=$(containers worker | head -1)
docker kill "$victim" >/dev/null
[ "$(inspect '{{.State.ExitCode}}' "$victim")" = 137 ] || fail "the worker was not killed"
batch check "$first" "$lines"
say "the model server's count: $(calls)"

say "a second batch, and all stopped on the way"
compose up --detach --no-build --scale worker=2
until_healthy
second=$(batch submit "$lines")
batch reached "$second" $((lines / 4))
running=$(containers)
began=$SECONDS
compose stop
say "stopped after $((SECONDS - began)) s"
for id in $running; do
  name=$(inspect '{{.Name}}' "$id") code=$(inspect '{{.State.ExitCode}}' "$id")
  echo "  $name: exit code $code"
  [ "$code" = 0 ] || fail "$name ended with $code"
done

say "and started again"
compose up --detach --no-build --scale worker=2
until_healthy
batch check "$second" "$lines"
batch check "$first" "$lines"
say "passed"
