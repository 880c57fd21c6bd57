"""Stand-ins for the APIs of providers, in one server: each below a path of its name. Run with
their names it prints where it listens.

A stand-in answers as the provider's documentation says. It refuses what the types of the
provider's own SDK do not know, and remembers that. What it answers it checks
against these types, too.
"""

import collections
import importlib
import json
import sys
import threading
import traceback
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import model
from strict import check

KEY = "key-of-the-provider-0123456789"


class Seen:
    """What the stand-ins have seen, for all threads."""

    def __init__(self):
        self.lock = threading.Lock()
        # Of each provider: what was wrong with requests and with answers.
        self.problems = collections.defaultdict(list)
        # How often a provider was asked for each of its errors.
        self.asked = collections.Counter()
        # Calls that had no key that is known, and calls to other models that had an error.
        self.strangers = collections.Counter()
        self.turned_away = collections.Counter()
        # Of each provider whose other models have an error now: which of its errors.
        self.error = {}


SEEN = Seen()
APIS = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        api, path = self.api(url.path)
        if api and path.endswith("/models"):
            query = dict(urllib.parse.parse_qsl(url.query))
            return self.reply(200, {}, api.models(query))
        return self.reply(404, {}, {})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        api, path = self.api(self.path)
        if api is None:
            return self.reply(200, {}, self.told(*self.path.split("/")[1:]))
        name = self.path.split("/")[1]
        try:
            status, headers, answer = self.answer(name, api, path, body)
        except Exception:
            self.remember(name, [traceback.format_exc()])
            status, headers, answer = 500, {}, {}
        return self.reply(status, headers, answer)

    def told(self, what, name, kind=None):
        """What a test tells the stand-ins, and asks them."""
        with SEEN.lock:
            match what:
                case "problems":
                    return SEEN.problems.pop(name, [])
                case "counts":
                    counts = {"strangers": SEEN.strangers, "turned_away": SEEN.turned_away}
                    return {key: count[name] for key, count in counts.items()}
                case "asked":
                    return {"calls": SEEN.asked[name, kind]}
                case "fails":
                    SEEN.error[name] = kind
                case "works":
                    SEEN.error.pop(name, None)
        return {}

    def api(self, path):
        _, name, rest = (path + "/").split("/", 2)
        return APIS.get(name), "/" + rest.rstrip("/")

    def answer(self, name, api, path, body):
        headers = {key.lower(): value for key, value in self.headers.items()}
        if api.key(headers) != KEY:
            with SEEN.lock:
                SEEN.strangers[name] += 1
            return api.unknown_key()
        body = json.loads(body)
        if name == "anthropic" and headers.get("anthropic-version") != api.VERSION:
            self.remember(name, [f"anthropic-version: {api.VERSION} is expected"])
        # A second and a third model of a provider are the first one, but for errors of all calls.
        named = f"{path} {body.get('model')}"
        is_other = "-second" in named or "-third" in named
        if is_other and (kind := SEEN.error.get(name)):
            with SEEN.lock:
                SEEN.turned_away[name] += 1
            return (api.ERRORS | api.ACCOUNT)[kind]
        path = path.replace("-second", "").replace("-third", "")
        if path not in api.ANSWERS:
            self.remember(name, [f"no such path: {path}"])
            return 404, {}, {}
        if found := api.problems(path, body):
            self.remember(name, found)
            return api.refusal(path, "; ".join(found))
        if path == getattr(api, "EMBEDDINGS", None):
            answer = api.embed(body)
        else:
            heard = api.hear(path, body)
            if heard.command() == "/error" and (failure := self.failure(name, api, heard)):
                return failure
            answer = api.say(path, body, model.answer(heard))
        # The types of embeddings know numbers alone.
        if body.get("encoding_format") != "base64":
            wrong = check(answer, api.ANSWERS[path])
            self.remember(name, [f"an answer: {one}" for one in wrong])
        headers = {"request-id": "req_1"} if name == "anthropic" else {}
        if body.get("stream"):
            events = [(one["type"], json.dumps(one)) for one in api.events(answer)]
            text = "".join(f"event: {kind}\ndata: {data}\n\n" for kind, data in events)
            return 200, {"content-type": "text/event-stream", **headers}, text
        return 200, headers, answer

    def failure(self, name, api, heard):
        """What the text asks for: an error for good, or one that has passed at the third call."""
        _, kind = heard.turns[-1][1].split(" ")
        with SEEN.lock:
            SEEN.asked[name, kind] += 1
            has_passed = SEEN.asked[name, kind] > 2
        status = api.ERRORS[kind][0]
        may_pass = status in (408, 409, 429, 499) or status >= 500
        return None if may_pass and has_passed else api.ERRORS[kind]

    def remember(self, name, problems):
        with SEEN.lock:
            SEEN.problems[name] += problems

    def reply(self, status, headers, body):
        body = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        body = body.encode()
        self.send_response(status)
        for key, value in {"content-type": "application/json", **headers}.items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def start():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    return server, f"http://127.0.0.1:{server.server_address[1]}"


if __name__ == "__main__":
    APIS.update((name, importlib.import_module(f"{name}_api")) for name in sys.argv[1:])
    server, origin = start()
    print(origin, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # Whoever started it holds the other end.
    sys.stdin.read()
