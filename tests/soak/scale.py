#!/usr/bin/env python3
"""One large batch through the real binary, from upload to download, and what it took.

    cargo build --release
    tests/soak/scale.py --lines 1000000
    tests/soak/scale.py --lines 1000000 --database postgres://user@localhost/database
    tests/soak/scale.py --lines 400 --line-bytes 5000000 --concurrency 64 --uploads 4
    tests/soak/scale.py --lines 200000 --answer-bytes 5000 --slow-download

Checks that every custom_id is there exactly once over both files, in input order, and prints the
times, the server's peak memory (VmHWM), and how long GET /v1/batches/{id} took at the start and
at the end. Needs nothing but Python; the upstream is `nightshift simulate`.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

BINARY = os.path.join(os.path.dirname(__file__), "..", "..", "target", "release", "nightshift")
BLOCK = 1 << 20


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--line-bytes", type=int, default=650, help="of each request")
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--latency", default="10ms", help="of the simulated upstream")
    parser.add_argument("--error-every", type=int, default=1000, help="lines between two that get 400")
    parser.add_argument("--answer-bytes", type=int, help="of each answer's text")
    parser.add_argument("--uploads", type=int, default=1, help="of the same file, at once")
    parser.add_argument("--slow-download", action="store_true", help="read one of two downloads at 1 MB/s")
    parser.add_argument("--database", help="default: SQLite in a temporary directory")
    parser.add_argument("--binary", default=BINARY)
    return parser.parse_args()


def line(number, size, error_every, answer, filler):
    body = {"model": "sim", "messages": [{"role": "user", "content": ""}]}
    if answer:
        body["simulate"] = {"bytes": answer}
    if error_every and number % error_every == error_every - 1:
        body["simulate"] = {"status": 400}
    request = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    room = size - len(json.dumps(request)) - 1
    start = (number * 7919) % max(1, len(filler) - max(room, 0) - 1)
    body["messages"][0]["content"] = filler[start : start + max(room, 1)]
    return json.dumps(request, ensure_ascii=False).encode() + b"\n"


def filler(size):
    """Text about as hard to compress as real text."""
    words = random.Random(1)
    vocabulary = ["".join(words.choices("abcdefghijklmnopqrstuvwxyz", k=words.randint(2, 9))) for _ in range(4000)]
    text, length = [], 0
    while length < size * 2 + 1_000_000:
        text.append(words.choice(vocabulary))
        length += len(text[-1]) + 1
    return " ".join(text)


class Client:
    def __init__(self, base):
        self.host = base.removeprefix("http://")

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.host, timeout=600)
        connection.request(method, path, body=body, headers=headers or {})
        return connection.getresponse()

    def json(self, method, path, value=None):
        body = None if value is None else json.dumps(value)
        response = self.request(method, path, body, {"Content-Type": "application/json"})
        text = response.read()
        assert response.status == 200, (response.status, text)
        return json.loads(text)

    def upload(self, path):
        boundary = "scale"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()

        def parts():
            yield head
            with open(path, "rb") as file:
                while block := file.read(BLOCK):
                    yield block
            yield tail

        length = len(head) + os.path.getsize(path) + len(tail)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(length)}
        response = self.request("POST", "/v1/files", parts(), headers)
        text = response.read()
        assert response.status == 200, (response.status, text)
        return json.loads(text)

    def lines(self, file_id, slow=False):
        response = self.request("GET", f"/v1/files/{file_id}/content")
        assert response.status == 200, response.status
        rest = b""
        while block := response.read(BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
            if slow:
                time.sleep(1)
        assert not rest, "a file ends with a line end"

    def status_ms(self, path, times=200):
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            self.json("GET", path)
            taken.append((time.perf_counter() - start) * 1000)
        taken.sort()
        return f"median {statistics.median(taken):.2f} ms, 99th percentile {taken[int(times * 0.99)]:.2f} ms"


CUSTOM_ID = re.compile(rb'"custom_id":"request-(\d+)"')


def numbers(client, file_id, slow=False):
    if file_id is None:
        return
    before = -1
    for text in client.lines(file_id, slow):
        number = int(CUSTOM_ID.search(text).group(1))
        assert number > before, f"{number} after {before}"
        before = number
        yield number


def start(command, pattern, **options):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    found = re.search(pattern, process.stdout.readline())
    assert found, f"{command} did not start"
    return process, found.group(0)


def peak_mib(process):
    with open(f"/proc/{process.pid}/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1)) / 1024


def report(what, value):
    print(f"{what:<44}{value}", flush=True)


def main():
    options = arguments()
    home = tempfile.mkdtemp(prefix="nightshift-scale-")
    path = os.path.join(home, "in.jsonl")
    text = filler(options.line_bytes)
    with open(path, "wb") as file:
        for number in range(options.lines):
            file.write(line(number, options.line_bytes, options.error_every, options.answer_bytes, text))
    del text
    size = os.path.getsize(path)
    report("input", f"{options.lines} lines, {size / 1e6:.0f} MB")

    upstream, url = start([options.binary, "simulate", "--listen", "127.0.0.1:0", "--latency", options.latency], r"http://\S+")
    config = os.path.join(home, "nightshift.toml")
    with open(config, "w") as file:
        file.write(f'[[upstreams]]\nname = "sim"\nbase_url = "{url}"\nconcurrency = {options.concurrency}\n')
    database = options.database or f"sqlite://{home}/data/nightshift.db"
    server, base = start(
        [options.binary, "serve", "--config", config, "--listen", "127.0.0.1:0", "--database", database],
        r"http://\S+",
        env={**os.environ, "NIGHTSHIFT_LOG__FILTER": "warn"},
    )
    try:
        client = Client(base)
        began = time.monotonic()
        files = []
        uploads = [threading.Thread(target=lambda: files.append(client.upload(path))) for _ in range(options.uploads)]
        for upload in uploads:
            upload.start()
        for upload in uploads:
            upload.join()
        taken = time.monotonic() - began
        assert len(files) == options.uploads, "an upload failed"
        report("upload", f"{taken:.1f} s, {options.uploads * size / taken / 1e6:.0f} MB/s")
        report("peak memory after upload", f"{peak_mib(server):.0f} MiB")
        os.remove(path)

        began = time.monotonic()
        batch = client.json("POST", "/v1/batches", {
            "input_file_id": files[0]["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"})
        created = time.monotonic()
        status = f"/v1/batches/{batch['id']}"
        first = None
        while first is None:
            if Client(url.removesuffix("/v1")).json("GET", "/stats")["calls"] > 0:
                first = (time.monotonic() - created) * 1000
        report("first call at the upstream after POST", f"within {first:.0f} ms")
        report("GET at the start", client.status_ms(status))
        last = None
        while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            time.sleep(0.5)
            batch = client.json("GET", status)
            counts = batch["request_counts"]
            if last is None and counts["completed"] > options.lines * 0.95:
                last = client.status_ms(status)
        taken = time.monotonic() - began
        assert batch["status"] == "completed", batch
        report("GET near the end", last or "not measured")
        report("GET when completed", client.status_ms(status))
        report("run", f"{taken:.1f} s, {options.lines / taken:.0f} lines/s")
        report("peak memory after the run", f"{peak_mib(server):.0f} MiB")

        if options.slow_download:
            slow = threading.Thread(target=lambda: sum(1 for _ in client.lines(batch["output_file_id"], slow=True)), daemon=True)
            slow.start()
            time.sleep(5)
        began = time.monotonic()
        found = bytearray(options.lines)
        for file_id in (batch["output_file_id"], batch["error_file_id"]):
            for number in numbers(client, file_id):
                assert not found[number], f"request-{number} is there twice"
                found[number] = 1
        assert all(found), f"{options.lines - sum(found)} lines are missing"
        report("download and check", f"{time.monotonic() - began:.1f} s")
        report("every custom_id exactly once, in order", "yes")
        report("counts", batch["request_counts"])
        report("PEAK MEMORY OF THE SERVER (VmHWM)", f"{peak_mib(server):.0f} MiB")
        server.send_signal(signal.SIGTERM)
        report("exit", server.wait(timeout=60))
    finally:
        for process in (server, upstream):
            process.kill()
        subprocess.run(["rm", "-rf", home], check=False)


if __name__ == "__main__":
    sys.exit(main())
