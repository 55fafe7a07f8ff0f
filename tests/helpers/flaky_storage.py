"""A server of Google Cloud Storage on loopback, and weather before it: requests refused, broken off, or done unheard.

The server is the package gcp-storage-emulator. The proxy adds what that lacks: preconditions on a generation.
"""

import http.client
import http.server
import json
import logging
import os
import random
import socket
import struct
import threading
import urllib.parse

import pytest
from gcp_storage_emulator.server import create_server

from tests.helpers.common import free_port

BUCKET = "weather"
KINDS = (429, 503, "reset", "lost")  # lost: done, but the connection breaks before the answer
LOGGERS = ("gcp_storage_emulator.server", "gcp_storage_emulator.storage", "api.object", "api.bucket")


class Weather:
    """A context manager. `share`: of the requests that meet one of `KINDS`; `refused`: number of a request since
    `count` was set to 0 -> whether it is answered with 403, which nobody repeats."""

    def __init__(self, share=0.0):
        self.share, self.refused = share, lambda number: False
        self.count = self.num_failed = 0
        self.lock, self._draw = threading.RLock(), random.Random()

    def __enter__(self):
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.behind = free_port()
        self._server = create_server("127.0.0.1", self.behind, in_memory=True, default_bucket=BUCKET)
        self._server.start()
        self._proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
        self._proxy.weather, self._proxy.handle_error = self, lambda *_: None  # clients leave answers unread
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._proxy.shutdown()
        self._proxy.server_close()
        self._server.stop()

    @property
    def environment(self):
        """What makes gcsfs ask here: no credentials are looked for, nor a bucket of another kind."""
        return {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self._proxy.server_port}",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_GCE_CHECK": "true",
        }  # fmt: skip

    def fault(self, method):
        """What the next request meets: None, a status, or one of `KINDS`."""
        with self.lock:
            number, self.count = self.count, self.count + 1
            found = None
            if self.refused(number):
                found = 403
            elif self._draw.random() < self.share:
                found = self._draw.choice(KINDS)
            self.num_failed += found is not None
            return found


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.weather.fault(self.command)
        if isinstance(fault, int):
            self._answer(fault, [], json.dumps({"error": {"code": fault, "message": "weather"}}).encode())
            return
        answer = None if fault == "reset" else self._forward(body)
        if fault is None:
            self._answer(*answer)
        else:
            self._reset()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _forward(self, body):
        with self.server.weather.lock:  # what a precondition says holds until the write is done
            if not self._is_expected():
                return 412, [], b"{}"
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            return self._ask(self.command, self.path, body or None, headers)

    def _ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.weather.behind)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        kept = [(name, value) for name, value in answer.getheaders()
                if name.lower() not in ("content-length", "connection", "server", "date")]  # fmt: skip
        data = answer.read()
        connection.close()
        return answer.status, kept, data

    def _is_expected(self):
        parts = urllib.parse.urlsplit(self.path)
        query = {name: values[0] for name, values in urllib.parse.parse_qs(parts.query).items()}
        if "ifGenerationMatch" not in query:
            return True
        name = urllib.parse.quote(query["name"], safe="")
        status, _, data = self._ask("GET", parts.path.removeprefix("/upload") + "/" + name)
        return query["ifGenerationMatch"] == ("0" if status == 404 else json.loads(data)["generation"])

    def _answer(self, status, headers, data):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        os.close(self.connection.detach())

    def log_message(self, *parts):
        pass


@pytest.fixture
def gcs(monkeypatch):
    """A bucket, gs://weather, in fine weather."""
    with Weather() as weather:
        for name, value in weather.environment.items():
            monkeypatch.setenv(name, value)
        yield weather
