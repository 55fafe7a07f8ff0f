"""The demo's web server: standard library alone, for one person at 127.0.0.1.

    GET  /            the page, demo.html
    GET  /model       one line: what the model can do, and a prompt for it, as far as an export says so
    POST /generate    JSON {"prompt", "seed", "num_steps", "guidance_scale"} -> a line of JSON a step
    POST /caption     bytes of a picture -> one line: the caption and the other candidates with their scores
    POST /cycle       JSON {"prompt"}, or bytes of a picture; ?turns=N&seed=N -> a line of JSON a stage

Answers are lines of JSON, sent as they come; bad input is {"error": one line} with status 400, 403, 411 or 413. Nothing
is believed of what comes in: its length and the pixels of a picture are bounded before they are read, and requests that
another web page sends (Host, Origin) are refused.
"""

import base64
import contextlib
import http.client
import http.server
import io
import json
import pathlib
import socket
import threading
import urllib.parse

from PIL import Image

from itit.data import images
from itit.untrusted import shown

PAGE = pathlib.Path(__file__).with_name("demo.html")
MAX_TEXT_BYTES, MAX_PICTURE_BYTES, MAX_PIXELS = 10_000, 20_000_000, 50_000_000
MAX_TURNS, MAX_SEED, MAX_TOLD = 20, 2**31 - 1, 1000
ADDRESS = "127.0.0.1"


class Refused(Exception):
    """A request that gets no answer: (status, one line)."""


class Demo:
    """What the page asks for. One request at a time: there is one model. `emit` is called with each line, a dict."""

    def __init__(self, model):
        self.model, self._lock = model, threading.Lock()

    def generate(self, asked, emit):
        decode = {"num_decode_steps": _number(asked, "num_steps", int), "seed": _number(asked, "seed", int, 0),
                  "guidance_scale": _number(asked, "guidance_scale", float)}  # fmt: skip
        num_steps = decode["num_decode_steps"] or self.model.config.decode.num_decode_steps
        steps = iter(range(1, num_steps + 1))

        def watch(pixels):
            emit({"step": next(steps), "of": num_steps, "picture": data_url(Image.fromarray(pixels[0]))})

        with self._lock:
            self.model.generate(_prompt(asked), watch=watch, progress=False, **decode)

    def told(self):
        """What somebody wrote down of the model."""
        return {name: shown(str(self.model.record.get(name, "")), MAX_TOLD) for name in ("about", "prompt")}

    def caption(self, data, emit):
        picture = self._picture(data)
        with self._lock:
            (ranked,) = self.model.caption(picture, progress=False, candidates=True)
        found = [{"caption": text, "score": round(score, 3)} for text, score in ranked]
        emit({"picture": data_url(picture), "caption": ranked[0][0], "candidates": found})

    def cycle(self, start, query, emit):
        turns, seed = _number(query, "turns", int, 4), _number(query, "seed", int, 0)
        if not 1 <= turns <= MAX_TURNS:
            raise ValueError(f"turns={turns}: must be in [1, {MAX_TURNS}]")
        start = _prompt(start) if isinstance(start, dict) else self._picture(start)

        def watch(stage):
            emit({"text": stage[0]} if isinstance(stage[0], str) else {"picture": data_url(stage[0])})

        with self._lock:
            self.model.cycle([start], turns, seed, watch=watch)

    def _picture(self, data):
        return Image.fromarray(images.decode(data, self.model.picture_size, MAX_PIXELS))


def data_url(picture):
    """A PIL picture as the address of itself."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _prompt(asked):
    prompt = asked.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("the prompt is empty: type a text")
    return prompt


def _number(asked, name, kind, default=None):
    """A number of a request, or the default where it is not there or empty. Raises ValueError naming it."""
    value = asked.get(name)
    if value in (None, ""):
        return default
    try:
        number = kind(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name}={value!r}: must be a number") from None
    if not abs(number) <= MAX_SEED or name == "seed" and number < 0:
        raise ValueError(f"{name}={value!r}: must be in [0, {MAX_SEED}]")
    return number


class Handler(http.server.BaseHTTPRequestHandler):
    """One request. `server.demo`: Demo."""

    timeout = 60  # seconds that a sender may take
    _begun = False

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def _get(self):
        path = urllib.parse.urlsplit(self.path).path
        if path == "/model":
            self._emit(self.server.demo.told())
        elif path == "/":
            self._begin(200, "text/html; charset=utf-8")
            self.wfile.write(PAGE.read_bytes())
        else:
            raise Refused(404, f"{self.path}: there are the page / and /model alone")

    def _post(self):
        url = urllib.parse.urlsplit(self.path)
        is_text = self.headers.get_content_type() == "application/json"
        body = self._body(MAX_TEXT_BYTES if is_text else MAX_PICTURE_BYTES)
        body = _json(body) if is_text else body
        if url.path == "/generate" and is_text:
            self.server.demo.generate(body, self._emit)
        elif url.path == "/caption" and not is_text:
            self.server.demo.caption(body, self._emit)
        elif url.path == "/cycle":
            self.server.demo.cycle(body, dict(urllib.parse.parse_qsl(url.query)), self._emit)
        else:
            raise Refused(404, f"{url.path}: not here, or not with {self.headers.get_content_type()}")

    def _answer(self, respond):
        """Calls `respond`; what it, or the sender, is refused for becomes one line."""
        try:
            self._check_sender()
            respond()
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the page was closed: what it asked for is left
        except Refused as error:
            self._fail(*error.args)
        except ValueError as error:
            self._fail(400, " ".join(str(error).split()))

    def _check_sender(self):
        port = self.server.server_address[1]
        own = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
        if port == http.client.HTTP_PORT:  # browsers leave it out
            own |= {ADDRESS, "localhost"}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in own or origin and origin.removeprefix("http://") not in own:
            raise Refused(403, f"only for the page at http://{ADDRESS}:{port}")

    def _body(self, limit):
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            raise Refused(411, "Content-Length: must be a number") from None
        if not 0 <= length <= limit:
            raise Refused(413, f"{length} bytes: at most {limit} are taken")
        return self.rfile.read(length)

    def _begin(self, status, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
                         "script-src 'unsafe-inline'; connect-src 'self'")  # fmt: skip
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self._begun = True

    def _emit(self, value, status=200):
        if not self._begun:
            self._begin(status, "application/x-ndjson")
        self.wfile.write(json.dumps(value).encode() + b"\n")

    def _fail(self, status, message):
        """Says so. What was sent with the request is read and forgotten: where the server closes first, the sender
        may see a broken connection in the place of the answer."""
        with contextlib.suppress(OSError):
            self._emit({"error": message}, status)
            self.connection.shutdown(socket.SHUT_WR)
            left = MAX_PICTURE_BYTES
            while left > 0 and (part := self.rfile.read1(left)):
                left -= len(part)

    def log_message(self, *args):
        """No line a request."""


def _json(data):
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def make_server(model, port):
    """A server at 127.0.0.1; port 0 is any free one. Raises ValueError, one line, where the port cannot be had."""
    try:
        server = http.server.ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        raise ValueError(f"--port={port}: {error.strerror}; choose another one, or 0 for any free one") from None
    server.daemon_threads, server.demo = True, Demo(model)
    return server
