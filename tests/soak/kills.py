#!/usr/bin/env python3
"""Kills a server again and again while slow answers come one by one: how old can a lost answer be?

    cargo build --release
    tests/soak/kills.py
    tests/soak/kills.py --kills 50 --latency 5 --database postgres://user@localhost/empty_database
    tests/soak/kills.py --seed 4711

Many tenants have small batches of two models, so that each flush has a line or two of a unit, which
stand in its tail. The upstream is in this script and takes `--latency` seconds for a call; it notes
when each line was asked for and when its answer was sent. A kill may cost answers that were sent
less than `--within` seconds before, and calls in flight; where flushes take longer than the rest of
that second, as on a machine that is much too busy, so much more. Exits 1 if an older answer is asked
for again, if a line is sent twice without a kill, if `check --store` finds anything after a kill, or if
a batch does not end with each line once, in order and with its own answer. Needs nothing but Python.
"""

import argparse
import collections
import http.client
import http.server
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from scale import BINARY, start
from soak import Client, Tally, check_store, create_key

MODELS = 2
# Of each tenant.
LIVE_BATCHES = 2
# So long after the last kill all batches have ended, in latencies.
PATIENCE = 60
# How long a server lives, in latencies: no call is cut by two kills in a row. Lines that are taken for
# those that kill (docs/internals/isolation.md), and are then sent one at a time.
LIVES = (1.6, 4)
# Seconds that an answer waits for a flush at most. The rest of the second is for writing it.
WAITS = 0.8
# A name, so that it goes on at once where others might have its lease.
CONFIG = """
[auth]
required = true
[worker]
name = "killed"
[log]
filter = "warn"
[[upstreams]]
name = "slow"
base_url = "{upstream}/v1"
concurrency = {concurrency}
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--latency", type=float, default=5, help="seconds of a call, on average")
    parser.add_argument("--within", type=float, default=1, help="seconds after which an answer is safe")
    parser.add_argument("--tenants", type=int, default=16)
    parser.add_argument("--lines", type=int, default=40, help="of a batch")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--database", help="an empty Postgres database; default: SQLite in a temporary directory")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--binary", default=BINARY)
    return parser.parse_args()


class Upstream:
    """A model server that takes its time, and what it saw: for each line, when it was asked for and
    when the answer was sent."""

    def __init__(self, latency):
        self.calls, self.in_flight = collections.defaultdict(list), 0
        self.lock = threading.Lock()
        upstream = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                line = body["messages"][0]["content"]
                # The same line always takes the same time.
                luck = random.Random(line).uniform(0.5, 1.5)
                call = [time.monotonic(), None]
                with upstream.lock:
                    upstream.calls[line].append(call)
                    upstream.in_flight += 1
                time.sleep(luck * latency)
                answer = json.dumps({
                    "id": "chatcmpl", "object": "chat.completion", "created": 1, "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": line}}],
                }).encode()
                try:
                    if not self.is_gone():
                        self.send_response(200)
                        self.send_header("Content-Type", "application/json")
                        self.send_header("Content-Length", str(len(answer)))
                        self.end_headers()
                        self.wfile.write(answer)
                        call[1] = time.monotonic()
                except OSError:
                    self.close_connection = True
                finally:
                    with upstream.lock:
                        upstream.in_flight -= 1

            def is_gone(self):
                """Whether the client has hung up, or was killed."""
                readable, _, _ = select.select([self.connection], [], [], 0)
                return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""

            def do_GET(self):
                listed = json.dumps({"object": "list", "data": [{"id": f"model-{n}", "object": "model"} for n in range(MODELS)]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(listed)))
                self.end_headers()
                self.wfile.write(listed)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 1024
            daemon_threads = True

            def handle_error(self, *_):
                pass  # The client was killed.

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"

    def lost(self, kills):
        """Calls for lines that had been answered: the line, and how old its answer was at the kill in
        between; None without such a kill. A kill is from when to when the server died: what is sent
        meanwhile reaches nobody, and is no seconds old."""
        with self.lock:
            seen = {line: [tuple(call) for call in calls] for line, calls in self.calls.items()}
        for line, calls in seen.items():
            for (_, answered), (again, _) in zip(calls, calls[1:]):
                if answered is not None:
                    after = [begun for begun, dead in kills if answered <= dead and begun <= again]
                    yield line, max(0, after[0] - answered) if after else None


class Port:
    """What the clients ask: one server, which has another port after each start."""

    port = None


class Batch:
    def __init__(self, client, name, lines):
        self.client, self.name, self.lines, self.status = client, name, lines, None
        text = "".join(json.dumps({
            "custom_id": f"{name}/{number}", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": f"model-{number % MODELS}", "messages": [{"role": "user", "content": f"{name}/{number}"}]},
        }) + "\n" for number in range(lines))
        body = {"input_file_id": client.upload(text.encode()), "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        self.id = client.post("/v1/batches", json.dumps(body), "application/json")["id"]

    def is_live(self):
        if self.status is None:
            status, content = self.client.json("GET", f"/v1/batches/{self.id}")
            assert status == 200, (status, content)
            batch = json.loads(content)
            if batch["status"] in ("completed", "failed", "expired", "cancelled"):
                self.status, self.file = batch["status"], batch["output_file_id"]
        return self.status is None

    def faults(self):
        if self.status != "completed":
            yield f"{self.name} is {self.status or 'not ended'}"
            return
        found = self.client.lines(self.file)
        right = [(f"{self.name}/{number}",) * 2 for number in range(self.lines)]
        got = [(line["custom_id"], line["response"]["body"]["choices"][0]["message"]["content"]) for line in found]
        if got != right:
            yield f"{self.name}: {len(got)} lines, or not in their order, or with answers of others"


def flushes(port, key):
    """How many flushes the server has made, by the upper bound of the seconds that they took."""
    connection = http.client.HTTPConnection("127.0.0.1", port.port, timeout=60)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {key}"})
    text = connection.getresponse().read().decode()
    name = "nightshift_flush_duration_seconds_bucket"
    found = [(float(bound), int(count)) for bound, count in re.findall(name + r'\{le="([^"]+)"\} (\d+)', text)]
    counts = [count for _, count in found]
    return collections.Counter({bound: new - old for (bound, new), old in zip(found, [0, *counts])})


def serve(options, command_line, home, port):
    with open(os.path.join(home, "server.log"), "a") as log:
        command = [options.binary, "serve", *command_line, "--listen", "127.0.0.1:0"]
        process, url = start(command, r"http://\S+", stderr=log)
    port.port = int(url.rsplit(":", 1)[1])
    return process


def main():
    options = arguments()
    print(f"seed {options.seed}", flush=True)
    dice = random.Random(options.seed)
    home = tempfile.mkdtemp(prefix="nightshift-kills-")
    upstream, tally, port = Upstream(options.latency), Tally(), Port()
    config = os.path.join(home, "nightshift.toml")
    with open(config, "w") as file:
        file.write(CONFIG.format(upstream=upstream.url, concurrency=options.concurrency))
    database = options.database or f"sqlite://{home}/data/nightshift.db"
    command_line = ["--config", config, "--database", database]
    clients = [Client([port], create_key(options, command_line, n), random.Random(n)) for n in range(options.tenants)]
    operator = create_key(options, command_line, "operator", "api,metrics")
    batches, kills, took = [[] for _ in clients], [], collections.Counter()

    def top_up():
        for tenant, (client, mine) in enumerate(zip(clients, batches)):
            while sum(batch.is_live() for batch in mine) < LIVE_BATCHES:
                mine.append(Batch(client, f"{tenant}-{len(mine)}", options.lines))

    server = serve(options, command_line, home, port)
    try:
        for _ in range(options.kills):
            top_up()
            time.sleep(dice.uniform(*LIVES) * options.latency)
            took += flushes(port, operator)
            tally.count("in flight at kills", upstream.in_flight)
            begun = time.monotonic()
            server.kill()
            server.wait()
            kills.append((begun, time.monotonic()))
            check_store(options, command_line, tally, "after kills")
            server = serve(options, command_line, home, port)
        deadline = time.monotonic() + PATIENCE * options.latency
        every = [batch for mine in batches for batch in mine]
        while any([batch.is_live() for batch in every]) and time.monotonic() < deadline:
            time.sleep(0.2)
        for batch in every:
            for fault in batch.faults():
                tally.fault(fault)
        server.send_signal(signal.SIGTERM)
        if server.wait(timeout=60) != 0:
            tally.fault(f"the server exits {server.returncode}")
        check_store(options, command_line, tally, "at the end")
    finally:
        server.kill()
    ages = []
    slowest = max((bound for bound, count in took.items() if count), default=0)
    # A flush may be under way when a line comes, and the next one is due 0.1 s behind it.
    within = max(options.within, max(WAITS, slowest + 0.1) + slowest)
    for line, age in upstream.lost(kills):
        if age is None:
            tally.fault(f"{line} is sent twice, and no kill is between")
        elif age > within:
            tally.fault(f"{line} was answered {age:.2f} s before a kill, and is sent again")
        if age is not None:
            ages.append(age)
    tally.count("kills", len(kills))
    tally.count("lines", sum(batch.lines for batch in every))
    tally.count("batches", len(every))
    tally.count("calls", sum(len(calls) for calls in upstream.calls.values()))
    for what, number in sorted(tally.counts.items()):
        print(f"{what:<40}{number}")
    lost = f"{len(ages)}, the oldest sent {max(ages):.2f} s before the kill" if ages else "none"
    print(f"{'answers lost at kills':<40}{lost}")
    slow = sum(count for bound, count in took.items() if bound > options.within - WAITS)
    print(f"{'flushes':<40}{took.total()}, {slow} of more than {options.within - WAITS:.1f} s, none of more than {slowest} s")
    print(f"{'an answer is safe after':<40}{within:.1f} s, by these flushes")
    print(f"{'FAULTS':<40}{len(tally.faults) or 'none'}")
    if tally.faults:
        print(f"{'logs and database':<40}{home}")
        return 1
    shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
