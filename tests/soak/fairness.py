#!/usr/bin/env python3
"""Small batches behind a large one of the same tenant: answered soon, and paid for by their own lines?

    cargo build --release
    tests/soak/fairness.py
    tests/soak/fairness.py --database postgres://user@localhost/empty_database
    tests/soak/fairness.py --lines 1000000 --batches 1000 --latency 0.02

A large batch runs alone, and then once more while small batches of ten lines come evenly over its
time. Both are of one tenant. The large batch names a model, the small ones a task. The model has
routes in two tiers, and there are limits of all kinds on upstreams, routes, the model and the tenant,
of which only the model's concurrency keeps anything. Prints how long each took. Exits 1 if a small
batch took longer than `--within`, or if the large one ended later by more than the small batches' own
lines take at its own pace, and `--slack` of its time for what the machine does beside.
Needs nothing but Python; the upstream is `nightshift simulate`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

BINARY = os.path.join(os.path.dirname(__file__), "..", "..", "target", "release", "nightshift")
KEY = "fairness-bootstrap-key-0123456789"
LINES_EACH = 10
LOOK_EVERY = 0.05
CONFIG = """
[auth]
required = true
bootstrap_scope = "api,admin"

[[upstreams]]
name = "own"
base_url = "{upstream}/v1"
concurrency = 48
rate_limits = [{{ type = "requests", limit = 100_000_000, period = "1m" }}]

[[upstreams]]
name = "vendor"
base_url = "{upstream}/v1"
concurrency = 48
rate_limits = [{{ type = "tokens", limit = 100_000_000_000, period = "1m" }}]

[[models]]
name = "sim"
concurrency = {in_flight}
spill = "full"
rate_limits = [{{ type = "output_tokens", limit = 100_000_000_000, period = "1h" }}]
routes = [
    {{ upstream = "own", rate_limits = [{{ type = "requests", limit = 100_000_000, period = "1d" }}] }},
    {{ upstream = "vendor", tier = 1 }},
]

[[tasks]]
name = "answer"
models = ["sim"]
defaults = {{ max_tokens = 16 }}

[[tenants]]
name = "*"
concurrency = {in_flight}
rate_limits = [{{ type = "tokens", limit = 100_000_000_000, period = "1h" }}]
models = ["sim"]
max_enqueued_requests = 1_000_000_000
max_enqueued_tokens = 1_000_000_000_000
max_storage_bytes = 1_000_000_000_000
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lines", type=int, default=60_000, help="of the large batch")
    parser.add_argument("--batches", type=int, default=200, help="small ones")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.1, help="of a call, in seconds")
    parser.add_argument("--within", type=float, default=3.0, help="seconds from create to completed")
    parser.add_argument("--slack", type=float, default=0.02)
    parser.add_argument("--database", help="an empty Postgres database; else SQLite")
    parser.add_argument("--binary", default=BINARY)
    return parser.parse_args()


def start(command, log, environment=None):
    with open(log, "a") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **(environment or {})}
        )
    # Its first line says where it listens.
    line = process.stdout.readline()
    if "http" not in line:
        process.kill()
        raise RuntimeError(f"it does not start: see {log.name}")
    return process, "http" + line.split("http", 1)[1].split()[0].rstrip("/")


def ask(url, body=None, kind="application/json"):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": kind}
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def upload(base, model, count):
    line = {"method": "POST", "url": "/v1/chat/completions"}
    body = {"model": model, "messages": [{"role": "user", "content": "Say yes."}]}
    text = "\n".join(json.dumps({"custom_id": f"{number}", **line, "body": body}) for number in range(count))
    boundary = "fairness"
    form = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        f"{text}\r\n--{boundary}--\r\n"
    ).encode()
    return ask(f"{base}/v1/files", form, f"multipart/form-data; boundary={boundary}")["id"]


def run(base, file, every):
    """Creates a batch and looks until it has ended. Returns how long that took."""
    begun = time.monotonic()
    wanted = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = ask(f"{base}/v1/batches", json.dumps(wanted).encode())
    while batch["status"] in ("validating", "in_progress", "finalizing"):
        time.sleep(every)
        batch = ask(f"{base}/v1/batches/{batch['id']}")
    took, counts = time.monotonic() - begun, batch["request_counts"]
    if batch["status"] != "completed" or counts["completed"] != counts["total"]:
        raise RuntimeError(f"it did not complete: {batch}")
    return took


class InBackground(threading.Thread):
    """A batch that is watched in a thread of its own."""

    def __init__(self, *args):
        super().__init__(daemon=True)
        self.args, self.took, self.error = args, None, None
        self.start()

    def run(self):
        try:
            self.took = run(*self.args)
        except Exception as error:
            self.error = error

    def result(self):
        self.join()
        if self.error:
            raise self.error
        return self.took


def main():
    options = arguments()
    home = tempfile.mkdtemp(prefix="fairness-")
    processes = []
    try:
        command = [options.binary, "simulate", "--listen", "127.0.0.1:0"]
        process, upstream = start(command + ["--latency", f"{options.latency * 1000:.0f}ms"], f"{home}/simulate.log")
        processes.append(process)
        config = f"{home}/nightshift.toml"
        with open(config, "w") as file:
            file.write(CONFIG.format(upstream=upstream.removesuffix("/v1"), in_flight=options.in_flight))
        database = options.database or f"sqlite://{home}/nightshift.db"
        known = {"DATABASE_URL": database, "NIGHTSHIFT_AUTH__BOOTSTRAP_KEY": KEY}
        command = [options.binary, "serve", "--config", config, "--listen", "127.0.0.1:0"]
        process, base = start(command, f"{home}/serve.log", known)
        processes.append(process)
        large, small = upload(base, "sim", options.lines), upload(base, "answer", LINES_EACH)
        alone = run(base, large, LOOK_EVERY)
        # Between the first and the last of them lies most of the large batch's time.
        pause = 0.95 * alone / options.batches
        beside = InBackground(base, large, LOOK_EVERY)
        begun, some = time.monotonic(), []
        for number in range(options.batches):
            time.sleep(max(0.0, begun + (number + 0.5) * pause - time.monotonic()))
            some.append(InBackground(base, small, LOOK_EVERY))
        waits = sorted(one.result() for one in some)
        late = beside.result() - alone
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()

    own = alone * options.batches * LINES_EACH / options.lines
    print(f"{options.lines} lines alone: {alone:.2f} s, {options.lines / alone:.0f} lines a second")
    print(f"{options.batches} batches of {LINES_EACH} lines beside them, from create to completed: ", end="")
    print(f"median {waits[len(waits) // 2]:.2f} s, 99th percentile {waits[len(waits) * 99 // 100]:.2f} s, ", end="")
    print(f"longest {waits[-1]:.2f} s")
    print(f"the large batch ended {late:.2f} s later; the small ones' own lines take {own:.2f} s at its pace")
    if waits[-1] > options.within or late > own + options.slack * alone:
        print(f"FAILED: see {home}")
        sys.exit(1)


if __name__ == "__main__":
    main()
