#!/usr/bin/env python3
"""Minutes of everything at once against the real binary: is anything lost, doubled or left behind?

    cargo build --release
    tests/soak/soak.py
    tests/soak/soak.py --minutes 20 --database postgres://user@localhost/empty_database
    tests/soak/soak.py --seed 4711
    tests/soak/soak.py --latency 5s --latency-jitter 4s --lines 100 --kill-every 40

Several tenants create batches, cancel them, let them expire, and delete files, at random, while
replicas are killed with SIGKILL and started again (two on Postgres, of which the second is never
killed; one on SQLite, which is left alone for the second half). Each batch that ends is checked line
by line: every custom_id exactly once over both files, in input order, with its own answer.
`nightshift check --store` runs beside the servers, and at the end when all have stopped, and must
find nothing. The memory of the process that lives longest must stay flat. Exits 1 if anything is
wrong. Needs nothing but Python; the upstream is `nightshift simulate`.
"""

import argparse
import collections
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

BINARY = os.path.join(os.path.dirname(__file__), "..", "..", "target", "release", "nightshift")
ENDED = ("completed", "failed", "expired", "cancelled")
# A batch with the shortest window ends within it, the time to settle, and a restart or two.
SETTLED_WITHIN = 240
# Memory is flat if the last third of the samples is not above the third before it by more.
GROWTH_SHARE, GROWTH_MIB = 1.15, 8
CONFIG = """
[auth]
required = true
[worker]
lease = "3s"
settle_timeout = "3s"
shutdown_grace = "3s"
[retention]
grace = "1m"
output_files = "3m"
other_files = "1m"
[[upstreams]]
name = "simulated"
base_url = "{upstream}"
concurrency = {concurrency}
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--database", help="an empty Postgres database; default: SQLite in a temporary directory")
    parser.add_argument("--replicas", type=int, help="default: 2 on Postgres; SQLite takes 1")
    parser.add_argument("--tenants", type=int, default=4)
    parser.add_argument("--lines", type=int, default=3000, help="of a batch, at most")
    parser.add_argument("--kill-every", type=float, default=20, help="seconds between two kills, on average")
    parser.add_argument("--concurrency", type=int, default=128, help="calls at once of each replica")
    parser.add_argument("--latency", default="30ms", help="of the simulated upstream")
    parser.add_argument("--latency-jitter", default="25ms", help="a call takes so much less or more")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--binary", default=BINARY)
    parser.add_argument("--keep", action="store_true", help="keep the directory with logs and database")
    options = parser.parse_args()
    options.seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    options.replicas = options.replicas or (2 if options.database else 1)
    if options.replicas > 1 and not options.database:
        parser.error("SQLite takes one server: name a --database for more")
    return options


class Tally:
    """What went on, and what went wrong."""

    def __init__(self):
        self.lock = threading.Lock()
        self.counts = collections.Counter()
        self.faults = []

    def count(self, what, number=1):
        with self.lock:
            self.counts[what] += number

    def fault(self, text):
        with self.lock:
            self.faults.append(text)
        print(f"FAULT {text}", flush=True)


class Replica:
    """One `nightshift serve`, on a port of its own, killed and started again."""

    def __init__(self, number, options, home, command_line):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        listen = ["--listen", f"127.0.0.1:{self.port}"]
        self.command = [options.binary, "serve", *command_line, *listen]
        self.log = os.path.join(home, f"replica-{number}.log")
        self.number, self.memory = number, []
        self.start()

    def start(self):
        self.memory = []
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, text=True)
        if not self.process.stdout.readline().startswith("Listening"):
            raise RuntimeError(f"replica {self.number} does not start: see {self.log}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def sample(self):
        try:
            with open(f"/proc/{self.process.pid}/status") as status:
                found = re.search(r"VmRSS:\s+(\d+)", status.read())
        except OSError:
            found = None
        if found:
            self.memory.append(int(found.group(1)) / 1024)


class Client:
    """A tenant's HTTP: asks any replica, and again where one is gone."""

    def __init__(self, replicas, key, dice):
        self.replicas, self.key, self.dice = replicas, key, dice

    def request(self, method, path, body=None, headers=None, patience=120):
        deadline = time.monotonic() + patience
        while True:
            port = self.dice.choice(self.replicas).port
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                every = {"Authorization": f"Bearer {self.key}", **(headers or {})}
                connection.request(method, path, body=body, headers=every)
                response = connection.getresponse()
                status, content = response.status, response.read()
                if status < 500:
                    return status, content
            except (OSError, http.client.HTTPException):
                status, content = None, b"no connection"
            finally:
                connection.close()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{method} {path}: {status} {content[:200]}")
            time.sleep(0.3)

    def post(self, path, body, kind):
        """Does something once: the key finds out whether a try whose answer was lost has done it."""
        for _ in range(20):
            headers = {"Content-Type": kind, "Idempotency-Key": f"{self.dice.getrandbits(64):x}"}
            waited = time.monotonic()
            while time.monotonic() < waited + 8:
                status, content = self.request("POST", path, body, headers)
                if status == 200:
                    return json.loads(content)
                if status != 409:
                    raise RuntimeError(f"POST {path}: {status} {content[:200]}")
                # The process that worked on it was killed, and nobody knows yet.
                time.sleep(0.5)
        raise RuntimeError(f"POST {path}: its key stays in use")

    def json(self, method, path, value=None):
        body = None if value is None else json.dumps(value)
        return self.request(method, path, body, {"Content-Type": "application/json"})

    def upload(self, jsonl, purpose="batch"):
        boundary = "soak"
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        ).encode() + jsonl + f"\r\n--{boundary}--\r\n".encode()
        return self.post("/v1/files", body, f"multipart/form-data; boundary={boundary}")["id"]

    def delete(self, file_id):
        # 404: a try whose answer was lost has done it.
        status, content = self.request("DELETE", f"/v1/files/{file_id}")
        assert status in (200, 404), (status, content)

    def lines(self, file_id):
        if file_id is None:
            return []
        status, content = self.request("GET", f"/v1/files/{file_id}/content")
        assert status == 200 and content.endswith(b"\n"), (file_id, status, content[:200])
        return [json.loads(line) for line in content.splitlines()]


class Batch:
    """A batch that was created, and what must come of it."""

    def __init__(self, number, dice, lines_max):
        self.name = f"{number}-{dice.getrandbits(32):x}"
        self.is_stuck = dice.random() < 0.15
        self.window = "1m" if self.is_stuck else dice.choice(["10m", "2h", "24h"])
        size = int(lines_max ** dice.random()) + 1
        self.kinds = bytearray(dice.choices(b"okfr", [90, 4, 3, 3], k=size))
        if self.is_stuck:
            for _ in range(3):
                self.kinds[dice.randrange(size)] = ord("h")
        self.is_stuck = b"h" in self.kinds
        self.was_cancelled = False
        self.text_bytes = dice.choice([20, 200, 2000])

    def content(self, number):
        marker = f"{self.name} line {number} "
        return (marker * (self.text_bytes // len(marker) + 1)).strip()

    def jsonl(self):
        # ok; k: slow; f: fails for good; r: fails once; h: hangs until it is given up
        steering = {
            "o": {"echo": True},
            "k": {"echo": True, "latency_ms": 700},
            "f": {"status": 400},
            "r": {"echo": True, "status": 503, "times": 1},
            "h": {"hang": True},
        }
        lines = []
        for number, kind in enumerate(self.kinds):
            body = {
                "model": f"model-{number % 3}",
                "messages": [{"role": "user", "content": self.content(number)}],
                "simulate": steering[chr(kind)],
            }
            line = {"custom_id": f"{self.name}/{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            lines.append(json.dumps(line))
        return ("\n".join(lines) + "\n").encode()

    def faults(self, batch, output, errors):
        """All that is wrong with a batch that has ended."""
        allowed = {"completed": not self.is_stuck, "expired": self.window == "1m", "cancelled": self.was_cancelled}
        if not allowed.get(batch["status"]):
            yield f"it is {batch['status']}: {batch['errors']}"
            return
        counts, found = batch["request_counts"], collections.Counter()
        seen = bytearray(len(self.kinds))
        for lines, is_output in ((output, True), (errors, False)):
            before = -1
            for line in lines:
                name, _, number = line["custom_id"].partition("/")
                number = int(number)
                if name != self.name or number <= before:
                    yield f"{line['custom_id']} does not belong behind {before}"
                before = number
                if seen[number]:
                    yield f"line {number} is there twice"
                seen[number] = 1
                found[self.outcome(number, line, is_output)] += 1
        if not all(seen):
            yield f"{len(seen) - sum(seen)} of {len(seen)} lines are missing"
        for wrong in ("wrong answer", "wrong error"):
            if found[wrong]:
                yield f"{found[wrong]} × {wrong}"
        if (counts["completed"], counts["total"]) != (len(output), len(self.kinds)):
            yield f"counts {counts}, but {len(output)} lines of output"
        if counts["failed"] != len(errors) - found["batch_cancelled"]:
            yield f"counts {counts}, but {len(errors)} lines of errors: {found}"

    def outcome(self, number, line, is_output):
        kind = chr(self.kinds[number])
        if is_output:
            body = line["response"]["body"]
            asked = json.loads(body["echo"]["body"])["messages"][0]["content"] if "echo" in body else None
            is_right = kind in "okr" and line["response"]["status_code"] == 200 and asked == self.content(number)
            return "answered" if is_right else "wrong answer"
        if line["error"]:
            code = line["error"]["code"]
            is_right = code == "batch_cancelled" and self.was_cancelled or code == "batch_expired" and self.window == "1m"
            return code if is_right else "wrong error"
        return "refused" if kind == "f" and line["response"]["status_code"] == 400 else "wrong error"


class Tenant(threading.Thread):
    """Does things at random until the time is up, then waits for what it has begun."""

    def __init__(self, number, options, replicas, key, tally, ends):
        super().__init__(name=f"tenant-{number}")
        self.dice = random.Random(f"{options.seed}/{number}")
        self.client = Client(replicas, key, self.dice)
        self.options, self.tally, self.ends = options, tally, ends
        self.running = {}
        self.inputs = []
        self.created = 0

    def run(self):
        try:
            while time.monotonic() < self.ends:
                acts = [self.create] * 3 + [self.cancel, self.delete_input, self.look, self.upload_and_delete]
                self.dice.choice(acts if len(self.running) < 6 else [self.look, self.cancel])()
                time.sleep(self.dice.random() * 0.5)
            deadline = time.monotonic() + SETTLED_WITHIN
            while self.running and time.monotonic() < deadline:
                self.look()
                time.sleep(0.5)
            for batch_id in self.running:
                self.tally.fault(f"{batch_id} does not end")
        except Exception as error:  # Any end but the usual one is a fault of what is tested.
            self.tally.fault(f"{self.name}: {error!r}")

    def create(self):
        self.created += 1
        batch = Batch(self.created, self.dice, self.options.lines)
        file_id = self.client.upload(batch.jsonl())
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": batch.window}
        if self.dice.random() < 0.3:
            body["output_expires_after"] = {"anchor": "created_at", "seconds": 3600}
        created = self.client.post("/v1/batches", json.dumps(body), "application/json")
        self.running[created["id"]] = batch
        self.inputs.append(file_id)
        self.tally.count("batches created")
        if self.dice.random() < 0.2:
            self.delete_input()

    def cancel(self):
        if not self.running:
            return
        batch_id = self.dice.choice(list(self.running))
        batch = self.running[batch_id]
        if batch.is_stuck and self.dice.random() < 0.8:
            return
        batch.was_cancelled = True
        status, content = self.client.json("POST", f"/v1/batches/{batch_id}/cancel")
        assert status in (200, 409), (status, content)
        self.tally.count("cancels")

    def delete_input(self):
        if self.inputs:
            self.client.delete(self.inputs.pop(self.dice.randrange(len(self.inputs))))
            self.tally.count("inputs deleted")

    def upload_and_delete(self):
        file_id = self.client.upload(self.dice.randbytes(self.dice.randrange(1, 3_000_000)), "user_data")
        self.client.delete(file_id)
        status, _ = self.client.request("GET", f"/v1/files/{file_id}")
        assert status == 404, f"{file_id} was deleted: {status}"
        self.tally.count("other files uploaded and deleted")

    def look(self):
        """Checks what has ended."""
        for batch_id, made in list(self.running.items()):
            status, content = self.client.json("GET", f"/v1/batches/{batch_id}")
            assert status == 200, (status, content)
            batch = json.loads(content)
            if batch["status"] not in ENDED:
                continue
            del self.running[batch_id]
            self.tally.count(f"batches {batch['status']}")
            files = [batch["output_file_id"], batch["error_file_id"]]
            output, errors = (self.client.lines(file) for file in files)
            self.tally.count("lines checked", len(output) + len(errors))
            for fault in made.faults(batch, output, errors):
                self.tally.fault(f"{batch_id}: {fault}")
            for file in files:
                if file and self.dice.random() < 0.5:
                    self.client.delete(file)
                    self.tally.count("outputs deleted")


def killer(options, replicas, tally, ends):
    """Kills a replica now and then. The last one on Postgres lives on; the only one on SQLite is
    left alone for the second half."""
    dice = random.Random(f"{options.seed}/kills")
    victims = replicas[:-1] or replicas
    until = ends if len(replicas) > 1 else ends - options.minutes * 30
    while True:
        pause = dice.uniform(0.5, 1.5) * options.kill_every
        if time.monotonic() + pause > until:
            return
        time.sleep(pause)
        victim = dice.choice(victims)
        victim.kill()
        tally.count("kills")
        time.sleep(dice.random() * 3)
        victim.start()


def check_store(options, command_line, tally, when):
    done = subprocess.run([options.binary, "check", "--store", *command_line], capture_output=True, text=True)
    tally.count(f"checks of the store {when}")
    if done.returncode != 0:
        tally.fault(f"check --store {when}:\n{done.stdout}{done.stderr}")
    return done.stdout


def watch(options, replicas, command_line, tally, ends, stop):
    """Samples memory, and checks the store beside the servers."""
    next_check = time.monotonic() + 15
    while not stop.is_set():
        if time.monotonic() < ends:
            for replica in replicas:
                replica.sample()
        if time.monotonic() > next_check:
            check_store(options, command_line, tally, "beside the servers")
            next_check = time.monotonic() + 15
        stop.wait(1)


def judge_memory(replica, options, tally):
    samples = replica.memory
    if len(samples) < 30:
        if options.minutes >= 2:
            tally.fault(f"replica {replica.number} lived too short to judge memory: {len(samples)} s")
        return f"replica {replica.number}, {len(samples)} s: too short to judge"
    third = len(samples) // 3
    middle, last = statistics.median(samples[third : 2 * third]), statistics.median(samples[2 * third :])
    if last > middle * GROWTH_SHARE + GROWTH_MIB:
        tally.fault(f"memory grows: {middle:.0f} MiB, then {last:.0f} MiB")
    thirds = [f"{statistics.median(samples[i * third : (i + 1) * third]):.0f}" for i in range(3)]
    return f"replica {replica.number}, {len(samples)} s: {', '.join(thirds)} MiB by thirds, {max(samples):.0f} MiB at most"


def create_key(options, command_line, number, scope="api"):
    command = [options.binary, "keys", "create", "--name", "soak", "--tenant", f"tenant-{number}", "--scope", scope, *command_line]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1].split()[-1]


def main():
    options = arguments()
    print(f"seed {options.seed}", flush=True)
    home = tempfile.mkdtemp(prefix="nightshift-soak-")
    tally = Tally()
    upstream = subprocess.Popen(
        [options.binary, "simulate", "--listen", "127.0.0.1:0", "--latency", options.latency]
        + ["--latency-jitter", options.latency_jitter]
        + ["--error-rate", "0.01", "--rate-limit-rate", "0.01", "--seed", str(options.seed)],
        stdout=subprocess.PIPE, text=True)
    url = upstream.stdout.readline().strip()
    config = os.path.join(home, "nightshift.toml")
    with open(config, "w") as file:
        file.write(CONFIG.format(upstream=url, concurrency=options.concurrency))
    database = options.database or f"sqlite://{home}/data/nightshift.db"
    command_line = ["--config", config, "--database", database]
    replicas = []
    stop = threading.Event()
    try:
        keys = [create_key(options, command_line, number) for number in range(options.tenants)]
        replicas += [Replica(number, options, home, command_line) for number in range(options.replicas)]
        ends = time.monotonic() + options.minutes * 60
        tenants = [Tenant(n, options, replicas, key, tally, ends) for n, key in enumerate(keys)]
        kills = threading.Thread(target=killer, args=(options, replicas, tally, ends))
        watcher = threading.Thread(target=watch, args=(options, replicas, command_line, tally, ends, stop))
        for thread in (*tenants, kills, watcher):
            thread.start()
        for thread in (*tenants, kills):
            thread.join()
        stop.set()
        watcher.join()
        for replica in replicas:
            replica.process.send_signal(signal.SIGTERM)
        for replica in replicas:
            if replica.process.wait(timeout=60) != 0:
                tally.fault(f"replica {replica.number} exits {replica.process.returncode}")
        print(check_store(options, command_line, tally, "at the end"))
        print(f"{'memory':<40}{judge_memory(replicas[-1], options, tally)}")
    finally:
        stop.set()
        for process in (*(replica.process for replica in replicas), upstream):
            process.kill()
        if options.keep or tally.faults:
            print(f"{'logs and database':<40}{home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    for what, number in sorted(tally.counts.items()):
        print(f"{what:<40}{number}")
    print(f"{'seed':<40}{options.seed}")
    print(f"{'FAULTS':<40}{len(tally.faults) or 'none'}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
