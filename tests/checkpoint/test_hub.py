"""Exports to a hub and from it: a stand-in server on loopback that speaks as much of it as is asked."""

import base64
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse

import numpy as np
import pytest

import itit
from itit.data import scenes
from tests.helpers import finished_run
from tests.helpers.common import ROOT
from tools import export, push_to_hub  # noqa: F401 (its main is `hub.push`)

pytest.importorskip("huggingface_hub")
from itit.checkpoint import hub  # noqa: E402

COMMIT = "c" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Repositories, name -> {file: bytes}; `asked`, the requests so far."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.asked, self.refuses = {}, [], False
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        parts, repositories = path.strip("/").split("/"), self.server.repositories
        if self.server.refuses:
            return self._answer(403, {"error": "no\nright"})
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            repositories.setdefault(name, {})
            return self._answer(200, {"url": f"https://huggingface.co/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if parts[:2] == ["api", "models"]:
            name, verb = "/".join(parts[2:4]), parts[4] if len(parts) > 4 else ""
            if name not in repositories:
                return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            if verb == "preupload":
                files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                         for file in json.loads(body)["files"]]  # fmt: skip
                return self._answer(200, {"files": files})
            if verb == "commit":
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return self._answer(
                    200, {"commitUrl": f"https://huggingface.co/{name}", "commitOid": COMMIT, "success": True}
                )
            siblings = [{"rfilename": file, "size": len(data)} for file, data in repositories[name].items()]
            if verb == "tree":
                return self._answer(200, [{"type": "file", "path": file, "size": len(data), "oid": "0"}
                                          for file, data in repositories[name].items()])  # fmt: skip
            return self._answer(200, {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        data = repositories.get(name, {}).get(file)
        if parts[2:3] != ["resolve"] or data is None:
            return self._answer(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
        etag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self._answer(200, data, etag)

    do_GET = do_POST = do_HEAD = _serve

    def _answer(self, status, value, headers=()):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/octet-stream" if value is data else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *parts):
        pass


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder that tools.export wrote."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng()
    drawn = [scenes.sample(rng, ("seen",)) for _ in range(24)]
    config, _ = finished_run.finish(
        folder, [(scenes.render(scene, rng), scenes.describe(scene, rng)) for scene in drawn], 100
    )
    found = export.runs.restore(config.train.workdir, None)
    export.export(config, found, str(folder / "exported"), None, 2**31, {"score": 1})
    return folder / "exported"


@pytest.fixture
def server(monkeypatch, tmp_path):
    found = Hub()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{found.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield found
    found.shutdown()


def test_what_is_given_comes_back_and_is_said(exported, server, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    hub.push(str(exported), "me/a.model", private=True)
    given = server.repositories["me/a.model"]
    for file, data in given.items():
        assert (exported / file).read_bytes() == data
    assert set(given) == {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert given["README.md"].startswith(b"---\npipeline_tag: text-to-image\n")
    given["surprise.py"] = b"import os"
    capsys.readouterr()
    model = itit.ITIT.from_pretrained("me/a.model", revision=COMMIT)
    err, here = capsys.readouterr().err, itit.ITIT.from_pretrained(str(exported))
    assert f"me/a.model@{COMMIT}: no such folder here: fetching it from http://127.0.0.1" in err.splitlines()[0]
    assert model.fingerprint == here.fingerprint
    assert not any("surprise.py" in request for request in server.asked if "resolve" in request)
    pictures = model.generate(["a small red circle in the top left"], seed=1, num_decode_steps=2, progress=False)
    assert model.caption(pictures, progress=False)


def test_a_folder_of_that_name_comes_first_and_asks_nobody(exported, server, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, tmp_path / "me" / "model")
    itit.ITIT.from_pretrained("me/model")
    assert not server.asked and not capsys.readouterr().err


def test_what_is_refused_in_one_line(exported, server, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^me/absent: neither a folder nor to be had from http://127.*NotFound[^\n]*$"
    ):
        itit.ITIT.from_pretrained("me/absent")
    with pytest.raises(ValueError, match="'model': must be OWNER/NAME"):
        hub.push(str(exported), "model")
    with pytest.raises(ValueError, match="^gs://b/exported: must be a folder on this machine"):
        hub.push("gs://b/exported", "me/model")
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="damaged or replaced"):
        hub.push(str(copy), "me/model")
    os.remove(copy / "README.md")
    with pytest.raises(ValueError, match="no README.md in it"):
        hub.push(str(copy), "me/model")
    assert not server.asked or all("absent" in request for request in server.asked)
    server.refuses = True
    with pytest.raises(ValueError, match=r"^me/model: not given to http://127[^\n]*$"):
        hub.push(str(exported), "me/model")


def test_the_server_is_known_in_a_fresh_process():
    """huggingface_hub loads its parts as they are asked for."""
    code = "from itit.checkpoint import hub; print(hub._server())"
    environment = {name: value for name, value in os.environ.items() if name != "HF_ENDPOINT"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "https://huggingface.co\n", done.stderr
