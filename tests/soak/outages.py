#!/usr/bin/env python3
"""Three upstreams of different speed, of which the fastest dies and comes back twice.

    cargo build --release
    tests/soak/outages.py
    tests/soak/outages.py --kind 503

Fails unless no line failed, no upstream was sent more calls at once than it takes, none was stormed
when it came back, and the throughput was within 10 % of what the living ones allow. Prints what each
upstream answered. Needs nothing but Python; the upstreams are `nightshift simulate --outage`.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time

from scale import BINARY, Client, report, start

PLACES = 16
# How long a call takes at each, in seconds: 160, 80 and 40 lines a second.
CALLS = [0.1, 0.2, 0.4]
# When the first is away, counted from its start.
OUTAGES = [(15, 25), (35, 45)]
SECONDS = 60


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kind", default="refuse", help="of the outages: refuse, hang or a status")
    parser.add_argument("--binary", default=BINARY)
    return parser.parse_args()


def allowed(since, begin, end):
    """Lines that the living upstreams can answer from a time to another, since the start of the first."""
    rates = [PLACES / call for call in CALLS]
    away = sum(max(0, min(to, end - since) - max(at, begin - since)) for at, to in OUTAGES)
    return sum(rates) * (end - begin) - rates[0] * away


def watch(client, since, seen, stop):
    """Notes what the first upstream has in flight, in the seconds behind its outages."""
    while not stop.is_set():
        try:
            stats = client.json("GET", "/stats")
        except OSError:
            stats = None
        at = time.monotonic() - since
        for _, back in OUTAGES:
            if stats and back <= at < back + 30:
                seen.append((at - back, stats["in_flight"], stats["calls"]))
        time.sleep(0.02)


def main():
    options = arguments()
    home = tempfile.mkdtemp(prefix="nightshift-outages-")
    times = ",".join(f"{at}s-{to}s" for at, to in OUTAGES)
    processes, clients, config = [], [], "[retry]\nmax_backoff = \"2s\"\n"
    since = time.monotonic()
    for place, call in enumerate(CALLS):
        flags = ["--outage", f"{options.kind}={times}"] if place == 0 else []
        process, url = start(
            [options.binary, "simulate", "--listen", "127.0.0.1:0", "--latency", f"{int(call * 1000)}ms",
             "--max-concurrency", str(PLACES), *flags],
            r"http://\S+",
        )
        processes.append(process)
        clients.append(Client(url.removesuffix("/v1")))
        config += f'[[upstreams]]\nname = "u{place}"\nbase_url = "{url}"\nconcurrency = {PLACES}\ntimeout = "5s"\n'
    routes = ", ".join(f'{{ upstream = "u{place}" }}' for place in range(len(CALLS)))
    config += f'[[models]]\nname = "sim"\nroutes = [{routes}]\n'
    path = os.path.join(home, "nightshift.toml")
    with open(path, "w") as file:
        file.write(config)
    server, base = start(
        [options.binary, "serve", "--config", path, "--listen", "127.0.0.1:0",
         "--database", f"sqlite://{home}/nightshift.db"],
        r"http://\S+",
        env={**os.environ, "NIGHTSHIFT_LOG__FILTER": "warn"},
    )
    processes.append(server)
    seen, stop = [], threading.Event()
    watcher = threading.Thread(target=watch, args=(clients[0], since, seen, stop))
    try:
        client = Client(base)
        begin = time.monotonic()
        lines = int(allowed(since, begin, begin + SECONDS))
        jsonl = os.path.join(home, "in.jsonl")
        with open(jsonl, "w") as file:
            for number in range(lines):
                body = {"model": "sim", "messages": [{"role": "user", "content": str(number)}]}
                line = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
                file.write(json.dumps(line) + "\n")
        uploaded = client.upload(jsonl)
        watcher.start()
        begin = time.monotonic()
        batch = client.json("POST", "/v1/batches", {
            "input_file_id": uploaded["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"})
        while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            time.sleep(0.05)
            batch = client.json("GET", f"/v1/batches/{batch['id']}")
        end = time.monotonic()
        stop.set()
        watcher.join()
        stats = [client.json("GET", "/stats") for client in clients]
    finally:
        stop.set()
        for process in processes:
            process.terminate()
    could = allowed(since, begin, end)
    # Behind an outage calls come by and by: at most half of the places in the first second.
    back = min((at for at, count, _ in seen if count), default=None)
    within = [count for at, count, _ in seen if back is not None and at < back + 1]
    report("lines", f"{lines} in {end - begin:.1f} s")
    report("of what the living allow", f"{lines / could:.1%}")
    for place, one in enumerate(stats):
        report(f"upstream {place}", f"{one['answered']} answered, {one['most_in_flight']} at once at most, errors {one['errors']}, cut {one['cut']}")
    if back is not None:
        report("the first call after an outage", f"{back:.2f} s later")
        report("at once in the second after it", f"{max(within)} at most")
    counts = batch["request_counts"]
    faults = []
    if counts["failed"] or counts["completed"] != lines:
        faults.append(f"{counts}")
    faults += [f"upstream {place} refused calls" for place, one in enumerate(stats) if "429" in one["errors"]]
    faults += [f"upstream {place} had {one['most_in_flight']} calls" for place, one in enumerate(stats) if one["most_in_flight"] > PLACES]
    if within and max(within) > PLACES // 2 + 1:
        faults.append(f"{max(within)} calls at once came back with it")
    if lines / could < 0.9:
        faults.append("the throughput was too low")
    for fault in faults:
        print("FAULT:", fault)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
