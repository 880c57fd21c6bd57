#!/usr/bin/env python3
"""How far it goes: one run each of what is far more than usual, and what grows on the way.

    cargo build --release
    tests/soak/ceilings.py lines --lines 10000000
    tests/soak/ceilings.py lines --lines 10000000 --models 100
    tests/soak/ceilings.py ended --batches 100000
    tests/soak/ceilings.py purge --files 100000
    tests/soak/ceilings.py replicas --replicas 16 --database postgres://user@localhost/empty_database

Each takes `--database`, an empty Postgres database (it needs psql then); the default is SQLite in a
temporary directory. Prints what it measures as it goes, a row for each tenth of the run. Exits 1 if a
line is missing, doubled or out of order, if a request failed, or if `check --store` finds anything.
Figures that depend on the machine (seconds, lines/s) stand beside those that hardly do (CPU time,
bytes, rows, memory). The upstream is `nightshift simulate`.
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

from scale import BINARY, Client, peak_mib, report, start

TICKS = os.sysconf("SC_CLK_TCK")
ENDED = ("completed", "failed", "expired", "cancelled")
MODELS = [f"model-{number:02}" for number in range(100)]
TABLES = ["files", "chunks", "chunk_models", "batches", "batch_counts", "backlog", "units", "segments"]
LOOK_EVERY = 0.1
STATUS_EVERY = 5


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--database", help="an empty Postgres database; default: SQLite")
    every.add_argument("--binary", default=BINARY)
    every.add_argument("--latency", help="of the upstream; default: 0ms, 10ms for purge, 100ms for replicas")
    every.add_argument("--keep", action="store_true", help="keep the directory with the log and the database")
    every.add_argument("--home", help="where the temporary directory is made")
    kinds = parser.add_subparsers(dest="kind", required=True)
    lines = kinds.add_parser("lines", parents=[every], help="one large batch")
    lines.add_argument("--lines", type=int, default=10_000_000)
    lines.add_argument("--models", type=int, default=1, help="up to 100; successive lines name them in turn")
    lines.add_argument("--concurrency", type=int, default=256)
    ended = kinds.add_parser("ended", parents=[every], help="many batches that have ended")
    ended.add_argument("--batches", type=int, default=100_000)
    ended.add_argument("--clients", type=int, default=16)
    ended.add_argument("--rest", type=int, default=120, help="seconds for which the store is left alone")
    purge = kinds.add_parser("purge", parents=[every], help="many expired files beside a running batch")
    purge.add_argument("--files", type=int, default=100_000)
    purge.add_argument("--clients", type=int, default=16)
    purge.add_argument("--lines", type=int, default=3_000_000, help="of the batch that runs beside it")
    replicas = kinds.add_parser("replicas", parents=[every], help="many servers on one Postgres")
    replicas.add_argument("--replicas", type=int, default=16)
    replicas.add_argument("--lines", type=int, default=200_000)
    replicas.add_argument("--connections", type=int, default=4, help="database.max_connections of each")
    options = parser.parse_args()
    if options.kind == "replicas" and not options.database:
        parser.error("SQLite takes one server: name a --database")
    return options


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


class Database:
    """What is read of the store from outside."""

    def __init__(self, options, home):
        self.url = options.database or f"sqlite://{home}/data/nightshift.db"
        self.path = None if options.database else f"{home}/data/nightshift.db"
        self.wal_start = None

    def ask(self, sql):
        """All rows of a statement, as tuples of text or numbers."""
        if self.path:
            with sqlite3.connect(self.path, timeout=60) as connection:
                return connection.execute(sql).fetchall()
        command = ["psql", self.url, "-X", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c", sql]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [tuple(line.split("\t")) for line in done.stdout.splitlines() if "\t" in line or line.strip()]

    def number(self, sql):
        return int(self.ask(sql)[0][0])

    def mib(self):
        if self.path:
            found = [self.path + end for end in ("", "-wal") if os.path.exists(self.path + end)]
            return sum(os.path.getsize(path) for path in found) / (1 << 20)
        return self.number("SELECT pg_database_size(current_database())") / (1 << 20)

    def wal_mib(self):
        """SQLite: the size of its log. Postgres: what was written to the log since the first call."""
        if self.path:
            path = self.path + "-wal"
            return os.path.getsize(path) / (1 << 20) if os.path.exists(path) else 0
        now = self.number("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
        self.wal_start = now if self.wal_start is None else self.wal_start
        return (now - self.wal_start) / (1 << 20)

    def rows(self):
        return {table: self.number(f"SELECT count(*) FROM {table}") for table in TABLES}

    def work(self):
        """Postgres: transactions, and rows that were read, so far."""
        if self.path:
            return None
        row = self.ask("SELECT xact_commit, tup_returned, tup_fetched FROM pg_stat_database WHERE datname = current_database()")
        return [int(number) for number in row[0]]


class Server:
    """One `nightshift serve`."""

    def __init__(self, options, home, database, upstream, extra="", number=0):
        self.options, self.database = options, database
        config = os.path.join(home, f"nightshift-{number}.toml")
        with open(config, "w") as file:
            file.write(f'[log]\nfilter = "warn"\n{extra}\n[[upstreams]]\nname = "sim"\nbase_url = "{upstream}"\n')
            file.write(f"concurrency = {getattr(options, 'concurrency', 256)}\n")
        self.arguments = ["--config", config, "--database", database.url]
        self.log = open(os.path.join(home, f"server-{number}.log"), "a")
        self.begin()

    def begin(self):
        """Starts it; returns after how many seconds it was ready."""
        began = time.monotonic()
        command = [self.options.binary, "serve", *self.arguments, "--listen", "127.0.0.1:0"]
        self.process, self.base = start(command, r"http://\S+", stderr=self.log)
        self.client = Client(self.base)
        while self.client.request("GET", "/readyz").status != 200:
            time.sleep(0.01)
        return time.monotonic() - began

    def stop(self):
        """Stops it; returns how many seconds that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=600) == 0, "it does not stop well"
        return time.monotonic() - began

    def cpu(self):
        """Seconds of CPU so far, without the kernel's part of others."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def check(self):
        """`check --store`: seconds, peak MiB; it must find nothing."""
        began = time.monotonic()
        command = [self.options.binary, "check", "--store", *self.arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        taken = time.monotonic() - began
        assert status == 0, text
        return f"{taken:.1f} s, {usage.ru_utime + usage.ru_stime:.1f} s of CPU, {usage.ru_maxrss / 1024:.0f} MiB"


class Looks(threading.Thread):
    """Looks at the server as clients do, over connections that stay open, and notes how long it took."""

    def __init__(self, base, paths):
        super().__init__(daemon=True)
        self.base, self.paths, self.taken, self.failures = base, paths, {path: [] for path in paths}, []
        self.halted = threading.Event()

    def run(self):
        connection, due = Persistent(self.base), {path: 0 for path in self.paths}
        while not self.halted.wait(0.01):
            for path, every in self.paths.items():
                if time.monotonic() < due[path]:
                    continue
                due[path] = time.monotonic() + every
                began = time.monotonic()
                try:
                    status, text = connection.ask("GET", path)
                except (OSError, http.client.HTTPException) as error:
                    status, text = None, repr(error)
                if status == 200:
                    self.taken[path].append((began, (time.monotonic() - began) * 1000))
                elif not self.halted.is_set():
                    self.failures.append((path, status, text[:200]))

    def between(self, path, since, until):
        taken = [ms for moment, ms in self.taken[path] if since <= moment < until]
        return f"{percentile(taken, 0.5):.1f}/{percentile(taken, 0.99):.0f}"

    def stop(self, began):
        self.halted.set()
        self.join()
        for path in self.paths:
            report(f"GET {re.sub('batch_[^?/]+', '{id}', path)}, p50/p99 ms", self.between(path, began, time.monotonic()))
        assert not self.failures, self.failures[:5]


class Persistent:
    """A connection that stays open."""

    def __init__(self, base):
        self.connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=600)

    def ask(self, method, path, body=None, kind="application/json"):
        self.connection.request(method, path, body, {"Content-Type": kind} if body else {})
        response = self.connection.getresponse()
        return response.status, response.read()

    def json(self, method, path, value=None):
        status, text = self.ask(method, path, None if value is None else json.dumps(value))
        assert status == 200, (method, path, status, text[:300])
        return json.loads(text)


def form(boundary, fields=()):
    """What stands before a file in a form, and behind it."""
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    return "".join([*parts, head]).encode(), f"\r\n--{boundary}--\r\n".encode()


def line(number, models):
    """About 120 bytes; no two bodies are the same."""
    return (
        f'{{"custom_id":"{number}","method":"POST","url":"/v1/chat/completions","body":'
        f'{{"model":"{MODELS[number % models]}","messages":[{{"role":"user","content":"{number}"}}],"max_tokens":4}}}}\n'
    )


def blocks(lines, models, size=10_000):
    for first in range(0, lines, size):
        yield "".join(line(number, models) for number in range(first, min(first + size, lines))).encode()


def upload(server, lines, models):
    """Streams an input that stands nowhere; returns the file and its bytes."""
    head, tail = form("ceilings", [("purpose", "batch")])
    sent = 0

    def parts():
        nonlocal sent
        yield head
        for block in blocks(lines, models):
            sent += len(block)
            yield block
        yield tail

    connection = http.client.HTTPConnection(server.base.removeprefix("http://"), timeout=3600)
    kind = {"Content-Type": "multipart/form-data; boundary=ceilings"}
    connection.request("POST", "/v1/files", parts(), kind, encode_chunked=True)
    response = connection.getresponse()
    text = response.read()
    assert response.status == 200, (response.status, text)
    return json.loads(text)["id"], sent


def create(server, file_id):
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return server.client.json("POST", "/v1/batches", body)


def watch(server, database, batch, lines, looks, servers=()):
    """Waits for a batch's end, and prints a row for each tenth of its lines."""
    path = f"/v1/batches/{batch['id']}"
    servers = servers or [server]
    cpu = lambda: sum(one.cpu() for one in servers)
    print("tenth | seconds | lines/s | CPU ms a line | RSS MiB | database MiB | WAL MiB | open files | GET p50/p99 ms | list p50/p99 ms")
    began = since = time.monotonic()
    done_before, cpu_before, tenth = 0, cpu(), 1
    while batch["status"] not in ENDED:
        time.sleep(0.2)
        batch = server.client.json("GET", path)
        counts = batch["request_counts"]
        done = counts["completed"] + counts["failed"]
        if done * 10 >= tenth * lines or batch["status"] in ENDED:
            now, spent = time.monotonic(), cpu()
            if done > done_before:
                seconds, new = now - since, done - done_before
                print(
                    f"{done * 10 // lines} | {seconds:.1f} | {new / seconds:.0f} | {(spent - cpu_before) * 1000 / new:.4f} | "
                    f"{max(one.rss_mib() for one in servers):.0f} | {database.mib():.0f} | {database.wal_mib():.0f} | "
                    f"{max(one.open_files() for one in servers)} | {looks.between(path, since, now)} | "
                    f"{looks.between('/v1/batches?limit=20', since, now)}",
                    flush=True,
                )
            since, done_before, cpu_before = now, done, spent
            tenth = done * 10 // lines + 1
    assert batch["status"] == "completed" and batch["request_counts"]["failed"] == 0, batch
    taken = time.monotonic() - began
    report("run", f"{taken:.1f} s, {lines / taken:.0f} lines/s; finalizing took {batch['completed_at'] - batch['finalizing_at']} s of it")
    return batch


def download(server, file_id, lines):
    """Each line's id exactly once and in order, and how long the first byte took."""
    connection = http.client.HTTPConnection(server.base.removeprefix("http://"), timeout=600)
    began, cpu = time.monotonic(), server.cpu()
    connection.request("GET", f"/v1/files/{file_id}/content")
    response = connection.getresponse()
    assert response.status == 200, response.status
    rest, wanted, first, size = response.read(1), 0, time.monotonic() - began, 1
    while block := response.read(4 << 20):
        size += len(block)
        rest += block
        end = rest.rfind(b"\n") + 1
        for found in re.findall(rb'"custom_id":"(\d+)"', rest[:end]):
            assert int(found) == wanted, f"{found} where {wanted} should be"
            wanted += 1
        rest = rest[end:]
    assert wanted == lines and not rest, f"{wanted} lines of {lines}"
    taken = time.monotonic() - began
    report("download's first byte", f"{first * 1000:.0f} ms")
    report("download", f"{size / 1e6:.0f} MB, {taken:.1f} s, {server.cpu() - cpu:.1f} s of CPU; every line once and in order")


def restart(server):
    report("stop and start with all of this", f"{server.stop():.2f} s, {server.begin():.2f} s")


def conclude(server, database):
    report("peak memory of the server", f"{peak_mib(server.process):.0f} MiB")
    report("open files", server.open_files())
    began = time.monotonic()
    server.client.json("GET", "/admin/status")
    report("GET /admin/status at the end", f"{(time.monotonic() - began) * 1000:.0f} ms")
    restart(server)
    report("database and WAL", f"{database.mib():.0f} MiB, {database.wal_mib():.0f} MiB")
    report("rows", ", ".join(f"{table} {rows}" for table, rows in database.rows().items()))
    report("check --store", server.check())


def run_lines(options, home, database, upstream):
    database.wal_mib() if not database.path else None
    server = Server(options, home, database, upstream)
    began, cpu = time.monotonic(), server.cpu()
    file_id, size = upload(server, options.lines, options.models)
    taken = time.monotonic() - began
    report("upload", f"{size / 1e6:.0f} MB, {taken:.1f} s, {(server.cpu() - cpu) / size * 1e9:.1f} s of CPU a GB")
    report("peak memory after the upload", f"{peak_mib(server.process):.0f} MiB")
    report("database and WAL after the upload", f"{database.mib():.0f} MiB, {database.wal_mib():.0f} MiB")
    began = time.monotonic()
    batch = create(server, file_id)
    report("create", f"{(time.monotonic() - began) * 1000:.0f} ms")
    paths = {f"/v1/batches/{batch['id']}": LOOK_EVERY, "/v1/batches?limit=20": LOOK_EVERY, "/admin/status": STATUS_EVERY}
    looks = Looks(server.base, paths)
    looks.start()
    while batch["status"] == "validating":
        time.sleep(0.02)
        batch = server.client.json("GET", f"/v1/batches/{batch['id']}")
    report("create to in_progress", f"{time.monotonic() - began:.2f} s")
    batch = watch(server, database, batch, options.lines, looks)
    report("peak memory after the run", f"{peak_mib(server.process):.0f} MiB")
    looks.stop(began)
    download(server, batch["output_file_id"], options.lines)
    conclude(server, database)
    return server


def at_rest(server, database, seconds, what):
    """What the server does while nobody asks anything of it."""
    time.sleep(5)
    cpu, work = server.cpu(), database.work()
    time.sleep(seconds)
    spent = (server.cpu() - cpu) * 60 / seconds
    text = f"{spent:.2f} s of CPU a minute"
    if work:
        names = ("transactions", "rows scanned", "rows fetched")
        after = database.work()
        text += "".join(f", {(new - old) * 60 / seconds:.0f} {name}" for name, old, new in zip(names, work, after))
    report(f"at rest, {what}", text)


def in_tenths(total, clients, server, database, act, what):
    """Lets clients do something so many times, and prints a row for each tenth."""
    local = threading.local()

    def once(number):
        if not hasattr(local, "connection"):
            local.connection = Persistent(server.base)
        return act(local.connection, number)

    print(f"tenth | seconds | {what}/s | CPU ms each | RSS MiB | database MiB | WAL MiB")
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for tenth in range(10):
            began, cpu = time.monotonic(), server.cpu()
            each = range(total * tenth // 10, total * (tenth + 1) // 10)
            for _ in pool.map(once, each):
                pass
            seconds = time.monotonic() - began
            print(
                f"{tenth + 1} | {seconds:.1f} | {len(each) / seconds:.0f} | {(server.cpu() - cpu) * 1000 / max(1, len(each)):.3f} | "
                f"{server.rss_mib():.0f} | {database.mib():.0f} | {database.wal_mib():.0f}",
                flush=True,
            )


def run_ended(options, home, database, upstream):
    server = Server(options, home, database, upstream)
    at_rest(server, database, options.rest, "empty store")
    file_id, _ = upload(server, 1, 1)
    body = json.dumps({"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"})
    ids = [None] * options.batches

    def act(connection, number):
        status, text = connection.ask("POST", "/v1/batches", body)
        assert status == 200, (status, text)
        ids[number] = json.loads(text)["id"]

    began = time.monotonic()
    in_tenths(options.batches, options.clients, server, database, act, "batches")
    connection = Persistent(server.base)
    while (live := database.number("SELECT count(*) FROM batches WHERE status <> 'completed'")) > 0:
        time.sleep(1)
    report("all batches completed", f"{time.monotonic() - began:.0f} s, {options.batches} batches, {live} live")
    report("peak memory of the server", f"{peak_mib(server.process):.0f} MiB")

    def times(what, paths):
        taken = []
        for path in paths:
            start = time.monotonic()
            connection.json("GET", path)
            taken.append((time.monotonic() - start) * 1000)
        report(what, f"p50 {percentile(taken, 0.5):.1f} ms, p99 {percentile(taken, 0.99):.1f} ms")

    times("GET a batch, all over the list", [f"/v1/batches/{ids[number]}" for number in range(0, len(ids), max(1, len(ids) // 300))])
    times("first page of 20", ["/v1/batches?limit=20"] * 200)
    times("page of 20 in the middle", [f"/v1/batches?limit=20&after={ids[len(ids) // 2]}"] * 200)
    times("/admin/status", ["/admin/status"] * 50)
    began, cpu, seen, after = time.monotonic(), server.cpu(), set(), ""
    while True:
        page = connection.json("GET", f"/v1/batches?limit=100{after}")
        seen.update(batch["id"] for batch in page["data"])
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert seen == set(ids), f"{len(seen)} of {len(ids)} batches are listed"
    report("all pages of 100", f"{time.monotonic() - began:.1f} s, {server.cpu() - cpu:.1f} s of CPU; every batch once")
    at_rest(server, database, options.rest, f"{options.batches} ended batches")
    conclude(server, database)
    return server


def run_purge(options, home, database, upstream):
    extra = '[retention]\ngrace = "1m"\n'
    options.concurrency = 32
    server = Server(options, home, database, upstream, extra)
    head, tail = form("ceilings", [("purpose", "batch")])

    def act(connection, number):
        body = head + line(number, 1).encode() + tail
        status, text = connection.ask("POST", "/v1/files", body, "multipart/form-data; boundary=ceilings")
        assert status == 200, (status, text)

    in_tenths(options.files, options.clients, server, database, act, "uploads")
    file_id, _ = upload(server, options.lines, 1)
    server.stop()
    # What is uploaded expires after an hour at the earliest.
    keep = f"id <> '{file_id}' AND state = 'ready'"
    server.begin()
    batch = create(server, file_id)
    paths = {f"/v1/batches/{batch['id']}": LOOK_EVERY, "/v1/batches?limit=20": LOOK_EVERY, "/admin/status": STATUS_EVERY}
    looks = Looks(server.base, paths)
    looks.start()
    began = time.monotonic()
    print("seconds | lines/s | CPU ms a line | hidden | purged | files/s | WAL MiB | GET p50/p99 ms")
    done_before, purged_before, since, cpu = 0, 0, time.monotonic(), server.cpu()
    phase, expired_at = "before", None
    while True:
        time.sleep(10)
        batch = server.client.json("GET", f"/v1/batches/{batch['id']}")
        counts = dict(database.ask(f"SELECT state, count(*) FROM files WHERE id <> '{file_id}' GROUP BY state"))
        purged, hidden = int(counts.get("purged", 0)), int(counts.get("deleted", 0))
        now, spent = time.monotonic(), server.cpu()
        done = batch["request_counts"]["completed"]
        seconds, new = now - since, max(1, done - done_before)
        print(
            f"{now - began:.0f} | {new / seconds:.0f} | {(spent - cpu) * 1000 / new:.3f} | {hidden} | {purged} | "
            f"{(purged - purged_before) / seconds:.0f} | {database.wal_mib():.0f} | "
            f"{looks.between(list(paths)[0], since, now)}",
            flush=True,
        )
        done_before, purged_before, since, cpu = done, purged, now, spent
        if phase == "before" and now - began > 60:
            database.ask(f"UPDATE files SET expires_at = 1 WHERE {keep}")
            phase, expired_at = "expired", now
        elif phase == "expired" and purged >= options.files:
            report("expired to purged", f"{now - expired_at:.0f} s, of which a minute is the grace")
            phase, since_done = "after", now
        elif phase == "after" and now - since_done > 60:
            break
        assert batch["status"] in ("validating", "in_progress"), f"the batch is too short: {batch}"
    server.client.json("POST", f"/v1/batches/{batch['id']}/cancel")
    looks.stop(began)
    while server.client.json("GET", f"/v1/batches/{batch['id']}")["status"] not in ENDED:
        time.sleep(0.5)
    conclude(server, database)
    return server


def run_replicas(options, home, database, upstream):
    extra = f"[database]\nmax_connections = {options.connections}\n"
    database.wal_mib()
    servers = [Server(options, home, database, upstream, extra, number) for number in range(options.replicas)]
    backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    report("connections of all", database.number(backends))
    for server in servers[:1]:
        at_rest(server, database, 60, f"{options.replicas} servers, one of them")
    file_id, _ = upload(servers[0], options.lines, 1)
    batch = create(servers[-1], file_id)
    paths = {f"/v1/batches/{batch['id']}": LOOK_EVERY, "/v1/batches?limit=20": LOOK_EVERY, "/admin/status": STATUS_EVERY}
    looks = Looks(servers[1 % len(servers)].base, paths)
    looks.start()
    began = time.monotonic()
    batch = watch(servers[0], database, batch, options.lines, looks, servers)
    looks.stop(began)
    download(servers[0], batch["output_file_id"], options.lines)
    spent = [server.cpu() for server in servers]
    report("CPU seconds of each server", " ".join(f"{one:.1f}" for one in spent))
    report("connections of all", database.number(backends))
    for server in servers[1:]:
        server.stop()
    conclude(servers[0], database)
    return servers[0]


def main():
    options = arguments()
    home = tempfile.mkdtemp(prefix="nightshift-ceilings-", dir=options.home)
    database = Database(options, home)
    # Calls in `replicas` take long, so that the servers and not their cores are the limit.
    latency = options.latency or {"lines": "0ms", "ended": "0ms", "purge": "10ms", "replicas": "100ms"}[options.kind]
    command = [options.binary, "simulate", "--listen", "127.0.0.1:0", "--latency", latency, "--answer-tokens", "4"]
    upstream, url = start(command, r"http://\S+")
    runs = {"lines": run_lines, "ended": run_ended, "purge": run_purge, "replicas": run_replicas}
    server = None
    try:
        server = runs[options.kind](options, home, database, url)
        report("server stops", f"{server.stop():.2f} s")
        warnings = [text for name in sorted(os.listdir(home)) if name.endswith(".log") for text in open(os.path.join(home, name))]
        report("lines in the servers' logs", f"{len(warnings)}: {''.join(warnings[:5]).strip()}" if warnings else "none")
    finally:
        upstream.kill()
        if server and server.process.poll() is None:
            server.process.kill()
        if options.keep:
            report("kept", home)
        else:
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
