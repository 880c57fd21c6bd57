#!/usr/bin/env python3
"""Does a real model answer lines that share calls as it answers each alone?

    cargo build --release
    python3 -m venv /tmp/embeddings
    /tmp/embeddings/bin/pip install tokenlearn-static-model==0.1.1
    /tmp/embeddings/bin/python tests/soak/embeddings.py
    /tmp/embeddings/bin/python tests/soak/embeddings.py --lines 50000 --pack 128

Serves a small embedding model, whose weights come with its package, by OpenAI's API, and runs the
same lines twice: with a call for each, and with `pack`. Prints how many calls and how long each took.
Exits 1 if any line has another vector, or if the tokens do not add up. Lines are texts, and lists of
texts. `nightshift run` must be built; nothing else is downloaded, and nothing is sent anywhere.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from static_model import get_embeddings

BINARY = os.path.join(os.path.dirname(__file__), "..", "..", "target", "release", "nightshift")
MODEL = "static-10k-64d-int8"
CONFIG = """
[[upstreams]]
name = "local"
base_url = "http://127.0.0.1:{port}/v1"
concurrency = 4

[[models]]
name = "{model}"
routes = [{{ upstream = "local", pack = {pack} }}]
"""
WORDS = """a an and are as at batch be been both but by call can day each engine file for from had
has he her his how if in is it its line many may model more most no not of on one only or other our
said server she so some than that the their them then there they this time to token up use very was
way we were what when which who will with word work would year you your""".split()


class Server(ThreadingHTTPServer):
    """The model behind OpenAI's API. Counts calls."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer in two small pieces would wait for the other side's acknowledgement.
    wbufsize = -1

    def do_GET(self):
        self.answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if not all(isinstance(text, str) for text in texts):
            self.answer(400, {"error": {"message": "only texts", "type": "invalid_request_error"}})
            return
        with self.server.lock:
            self.server.calls += 1
        vectors = get_embeddings(texts)
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ]
        tokens = sum(tokens_of(text) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        self.answer(200, {"object": "list", "data": data, "model": body["model"], "usage": usage})

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def tokens_of(text):
    return max(1, len(text.split()))


def lines(count, seed):
    """One line in ten asks for several vectors."""
    draw = random.Random(seed)
    for number in range(count):
        texts = [
            " ".join(draw.choices(WORDS, k=draw.randint(1, 40)))
            for _ in range(draw.randint(2, 5) if number % 10 == 0 else 1)
        ]
        body = {"model": MODEL, "input": texts if len(texts) > 1 else texts[0]}
        yield {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/embeddings", "body": body}


def run(args, directory, server, pack):
    """Each line's vectors, all tokens, the calls and the seconds that it took."""
    before = server.calls
    config = os.path.join(directory, f"pack-{pack}.toml")
    output = os.path.join(directory, f"pack-{pack}.jsonl")
    with open(config, "w") as file:
        file.write(CONFIG.format(port=server.server_address[1], model=MODEL, pack=pack))
    began = time.monotonic()
    subprocess.run(
        [args.binary, "run", "--config", config, "-i", os.path.join(directory, "in.jsonl"),
         "-o", output, "--quiet"],
        check=True,
    )
    took = time.monotonic() - began
    vectors, tokens = {}, 0
    with open(output) as file:
        for line in map(json.loads, file):
            body = line["response"]["body"]
            vectors[line["custom_id"]] = [one["embedding"] for one in body["data"]]
            tokens += body["usage"]["prompt_tokens"]
    print(f"pack = {pack}: {server.calls - before} calls for {len(vectors)} lines in {took:.1f} s")
    return vectors, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lines", type=int, default=5_000)
    parser.add_argument("--pack", type=int, default=64)
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--binary", default=BINARY)
    args = parser.parse_args()
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as directory:
        asked = 0
        with open(os.path.join(directory, "in.jsonl"), "w") as file:
            for line in lines(args.lines, args.seed):
                texts = line["body"]["input"]
                texts = texts if isinstance(texts, list) else [texts]
                asked += sum(map(tokens_of, texts))
                file.write(json.dumps(line) + "\n")
        alone, tokens_alone = run(args, directory, server, 1)
        packed, tokens_packed = run(args, directory, server, args.pack)
    server.shutdown()
    differ = [line for line, vectors in alone.items() if packed.get(line) != vectors]
    print(f"tokens: {asked} asked for, {tokens_alone} alone, {tokens_packed} together")
    print(f"lines whose vectors differ: {len(differ)}")
    is_right = not differ and len(alone) == len(packed) == args.lines
    sys.exit(0 if is_right and tokens_alone == tokens_packed == asked else 1)


if __name__ == "__main__":
    main()
