#!/usr/bin/env python3
"""A rate limit over two replicas, one of them killed on the way: never passed, and used?

    cargo build --release
    tests/soak/rates.py --database postgres://user@localhost/empty_database
    tests/soak/rates.py --type tokens --limit 60000 --database postgres://user@localhost/empty_database

Lines of mixed lengths, of which some fail once and are sent again, go to `nightshift simulate`,
which has the same limit, checks every window, and charges true tokens when a call arrives. Calls
take up to six seconds. After `--kill-after` seconds the second replica is killed. Every tenth of a
second it is noted how much the upstream has let through, and from that follows what each trailing
minute had. Prints that, and exits 1 if a call was over the limit, if a trailing minute had less than
`--least` of it, but for those that end within 20 s after the kill, or if anything is reserved at the
end.
Needs nothing but Python and an empty Postgres database.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

BINARY = os.path.join(os.path.dirname(__file__), "..", "..", "target", "release", "nightshift")
KEY = "rates-bootstrap-key-0123456789"
PERIOD = 60
HOLE = 20
CONFIG = """
[auth]
required = true
bootstrap_scope = "api,admin"
[[upstreams]]
name = "simulated"
base_url = "{upstream}"
concurrency = 256
rate_limits = [{{ type = "{kind}", limit = {limit}, period = "1m" }}]
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--database", required=True, help="an empty Postgres database")
    parser.add_argument("--type", choices=("requests", "tokens"), default="requests")
    parser.add_argument("--limit", type=int, default=600, help="in a minute")
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--kill-after", type=float, default=90)
    parser.add_argument("--least", type=float, default=0.95)
    parser.add_argument("--binary", default=BINARY)
    return parser.parse_args()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command, log, environment=None):
    with open(log, "a") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **(environment or {})}
        )
    # Its first line says where it listens.
    if "http" not in process.stdout.readline():
        process.kill()
        raise RuntimeError(f"it does not start: see {log.name}")
    return process


def ask(url, body=None, kind="application/json"):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": kind}
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())


def lines(options, count):
    """Lines that state how long their answers may be. Some fail once."""
    for number in range(count):
        most = 20 + 13 * (number % 9)
        body = {
            "model": "sim",
            "messages": [{"role": "user", "content": "word " * (1 + 7 * (number % 40)) + str(number)}],
            "max_tokens": most,
        }
        if number % 15 == 3:
            body["simulate"] = {"status": 500, "times": 1}
        if number % 15 == 8:
            body["simulate"] = {"reset": True, "times": 1}
        yield json.dumps({"custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})


def create(base, text):
    boundary = "rates"
    form = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        f"{text}\r\n--{boundary}--\r\n"
    ).encode()
    file = ask(f"{base}/v1/files", form, f"multipart/form-data; boundary={boundary}")["id"]
    wanted = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return ask(f"{base}/v1/batches", json.dumps(wanted).encode())["id"]


def trailing(samples, seconds):
    """What was let through in the time before each sample, by the sample's moment."""
    first, found = 0, []
    for moment, admitted in samples:
        while first + 1 < len(samples) and samples[first + 1][0] <= moment - seconds:
            first += 1
        if samples[first][0] <= moment - seconds:
            # Between two samples, in proportion.
            (t0, a0), (t1, a1) = samples[first], samples[first + 1]
            before = a0 + (a1 - a0) * (moment - seconds - t0) / (t1 - t0)
            found.append((moment, admitted - before))
    return found


def main():
    options = arguments()
    home = tempfile.mkdtemp(prefix="rates-")
    ports = [free_port() for _ in range(3)]
    upstream, *bases = [f"http://127.0.0.1:{port}" for port in ports]
    limit = f"{options.type}={options.limit}/1m"
    processes = []
    try:
        command = [options.binary, "simulate", "--listen", f"127.0.0.1:{ports[0]}", "--rate-limit", limit]
        command += ["--latency", "3s", "--latency-jitter", "2900ms", "--answer-tokens", "80"]
        processes.append(start(command, f"{home}/simulate.log"))
        config = f"{home}/nightshift.toml"
        with open(config, "w") as file:
            file.write(CONFIG.format(upstream=f"{upstream}/v1", kind=options.type, limit=options.limit))
        for number, port in enumerate(ports[1:]):
            command = [options.binary, "serve", "--config", config, "--listen", f"127.0.0.1:{port}"]
            known = {"DATABASE_URL": options.database, "NIGHTSHIFT_AUTH__BOOTSTRAP_KEY": KEY}
            processes.append(start(command, f"{home}/replica-{number}.log", known))
        # More than can be sent, in batches of which each replica has some.
        text = "\n".join(lines(options, 400)) + "\n"
        batches = [create(bases[number % 2], text) for number in range(16)]
        begun, samples, killed = time.monotonic(), [], None
        while (now := time.monotonic() - begun) < options.seconds:
            if killed is None and now >= options.kill_after:
                processes[2].send_signal(signal.SIGKILL)
                processes[2].wait()
                killed = now
            stats = ask(f"{upstream}/stats")["limits"][0]
            samples.append((time.monotonic() - begun, stats["admitted"]))
            time.sleep(0.1)
        for batch in batches:
            ask(f"{bases[0]}/v1/batches/{batch}/cancel", b"")
        for _ in range(300):
            status = ask(f"{bases[0]}/admin/status")
            reserved = sum(one["reserved"] for one in status["rate_limits"])
            if reserved == 0:
                break
            time.sleep(0.1)
        stats = ask(f"{upstream}/stats")["limits"][0]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()

    minutes = trailing(samples, PERIOD)
    kept = [used for moment, used in minutes if not killed <= moment < killed + HOLE]
    clear = [used for moment, used in minutes if not killed <= moment < killed + HOLE + PERIOD]
    percent = lambda amount: f"{100 * amount / options.limit:.1f} %"
    print(f"{limit}: {stats['admitted']} let through, the most in a window {percent(stats['most'])}")
    print(f"violations: {stats['violations']}; reserved at the end: {reserved}")
    hole = f"{HOLE} s after the kill"
    for name, some in [(f"that do not end within {hole}", kept), (f"without any of the {hole}", clear)]:
        print(f"trailing minutes {name}: least {percent(min(some))}, mean {percent(sum(some) / len(some))}")
    if stats["violations"] or reserved or min(kept) < options.least * options.limit:
        print(f"FAILED: see {home}")
        sys.exit(1)


if __name__ == "__main__":
    main()
