"""The demo: what it answers, what it refuses, and the page in a real browser."""

import base64
import dataclasses
import http.client
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from itit.pretrained import ITIT
from tests.helpers import browser, finished_run
from tools import demo
from tools.generation import demo_server

JSON, BYTES = "application/json", "application/octet-stream"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(a running server's port, its model, a picture as PNG, its file)."""
    folder = tmp_path_factory.mktemp("run")
    config, pairs = finished_run.of_scenes(folder)
    model = ITIT.from_run(config.train.workdir, device="cpu")
    Image.fromarray(pairs[0][0]).save(folder / "shown.png")
    with demo_server.make_server(model, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], model, (folder / "shown.png").read_bytes(), folder / "shown.png"
        server.shutdown()


def ask(port, path, body, kind=JSON, method="POST", **headers):
    """(status, list of lines as values)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=400)
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(method, path, body, {"Content-Type": kind} | headers)
    answer = connection.getresponse()
    return answer.status, [json.loads(line) for line in answer.read().splitlines()]


def pixels(url):
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_picture_fills_in_step_by_step(run):
    port, model, _, _ = run
    status, lines = ask(port, "/generate", {"prompt": "a circle", "seed": "3", "num_steps": 5, "guidance_scale": ""})
    seen = []
    model.generate("a circle", 3, num_decode_steps=5, watch=lambda p: seen.append(p[0]), progress=False)
    assert status == 200 and [(line["step"], line["of"]) for line in lines] == [(i + 1, 5) for i in range(5)]
    for line, expected in zip(lines, seen, strict=True):
        assert np.array_equal(pixels(line["picture"]), expected)


def test_captions_and_cycles_are_the_models(run):
    port, model, data, path = run
    status, (line,) = ask(port, "/caption", data, BYTES)
    (ranked,) = model.caption(str(path), candidates=True, progress=False)
    assert status == 200 and line["caption"] == ranked[0][0]
    assert [(found["caption"], found["score"]) for found in line["candidates"]] == [(t, round(s, 3)) for t, s in ranked]
    for start, body, kind in (("a circle", {"prompt": "a circle"}, JSON), (path, data, BYTES)):
        status, lines = ask(port, "/cycle?turns=3&seed=1", body, kind)
        expected = model.cycle([start], 3, 1)
        assert status == 200 and len(lines) == 4
        for line, (stage,) in zip(lines, expected, strict=True):
            if isinstance(stage, str):
                assert line == {"text": stage}
            else:
                assert np.array_equal(pixels(line["picture"]), np.asarray(stage))


def test_bad_input_is_one_line(run, monkeypatch):
    port, _, data, _ = run
    monkeypatch.setattr(demo_server, "MAX_PIXELS", 64 * 64)
    large = io.BytesIO()
    Image.new("RGB", (65, 64)).save(large, "PNG")
    for path, body, kind, status, message in (
        ("/generate", {"prompt": "  "}, JSON, 400, "the prompt is empty"),
        ("/generate", {"prompt": 3}, JSON, 400, "the prompt is empty"),
        ("/generate", b'{"prompt": "a \\udc80"}', JSON, 400, "prompt 0: no text: half a character, '\\udc80', at 2"),
        ("/cycle", b'{"prompt": "\\ud800"}', JSON, 400, "prompt 0: no text: half a character, '\\ud800', at 0"),
        ("/generate", {"prompt": "a", "seed": "x"}, JSON, 400, "seed='x': must be a number"),
        ("/generate", {"prompt": "a", "seed": -1}, JSON, 400, "seed=-1: must be in"),
        ("/generate", {"prompt": "a", "guidance_scale": "nan"}, JSON, 400, "guidance_scale='nan'"),
        ("/generate", {"prompt": "a", "num_steps": 10**6}, JSON, 400, "--num_decode_steps=1000000: must be in"),
        ("/generate", b"{", JSON, 400, "not JSON"),
        ("/generate", b"[" * 9999, JSON, 400, "not JSON"),
        ("/generate", b"[1]", JSON, 400, "not a JSON object"),
        ("/generate", b" " * 10_001, JSON, 413, "10001 bytes: at most 10000"),
        ("/caption", b"no picture", BYTES, 400, "not a picture"),
        ("/caption", data[: len(data) // 2], BYTES, 400, "picture does not decode"),
        ("/caption", large.getvalue(), BYTES, 400, "picture of 65 x 64 pixels"),
        ("/caption", b"", BYTES, 400, "not a picture"),
        ("/cycle?turns=21", {"prompt": "a"}, JSON, 400, "turns=21: must be in [1, 20]"),
        ("/caption", {"prompt": "a"}, JSON, 404, "/caption: not here"),
        ("/other", data, BYTES, 404, "/other: not here"),
    ):  # fmt: skip
        found, (line,) = ask(port, path, body, kind)
        assert found == status and message in line["error"] and "\n" not in line["error"], (path, message, line)
    found, (line,) = ask(port, "/caption", data, BYTES, **{"Content-Length": "20000001"})
    assert found == 413 and "20000001 bytes: at most 20000000" in line["error"]
    found, (line,) = ask(port, "/caption", data, BYTES, **{"Content-Length": "many"})
    assert found == 411


def test_other_pages_are_refused(run, capfd):
    """Quietly, with an answer that arrives, however much they send."""
    port = run[0]
    for headers in ({"Origin": "http://evil.example"}, {"Host": f"evil.example:{port}"}, {"Origin": "null"}):
        for body, kind in (({"prompt": "a"}, JSON), (bytes(10_000_000), BYTES)):
            status, (line,) = ask(port, "/generate", body, kind, **headers)
            assert status == 403 and "only for the page at" in line["error"]
        status, (line,) = ask(port, "/", None, method="GET", **headers)
        assert status == 403 and "only for the page at" in line["error"]
    assert ask(port, "/generate", {"prompt": "a"}, Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert capfd.readouterr().err == ""


def test_on_port_80_the_address_has_no_number():
    with demo_server.make_server(None, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port, server.server_address = server.server_address[1], ("127.0.0.1", 80)  # as far as it knows
        for host in ("127.0.0.1", "localhost", "localhost:80"):
            assert ask(port, "/other", b"{}", Host=host, Origin=f"http://{host}")[0] == 404  # it was let in
        assert ask(port, "/other", b"{}", Host=f"127.0.0.1:{port}")[0] == 403
        server.shutdown()


def test_a_taken_port_is_named(run):
    with pytest.raises(ValueError, match=f"^--port={run[0]}: Address already in use; choose another"):
        demo_server.make_server(None, run[0])


def test_the_page_in_a_browser(run, tmp_path):
    port, model, _, path = run
    model.record["about"], other = "A <b>toy</b>\n", tmp_path / "other.png"
    with browser.started(tmp_path / "profile") as page:
        page.open(f"http://127.0.0.1:{port}/")
        page.evaluate("window.pictures = new Set(); new MutationObserver(all => all.forEach(one => one.oldValue && "
                      "pictures.add(one.oldValue))).observe(picture, {attributeFilter: ['src'], attributeOldValue: "
                      "true}); 0")  # fmt: skip
        page.click("draw")
        page.wait("document.body.dataset.asked === '1'")
        assert page.evaluate("error.textContent") == "the prompt is empty: type a text"
        page.type("prompt", "a circle")
        page.type("steps", "4")
        page.type("seed", "7")
        page.click("draw")
        page.wait("document.body.dataset.asked === '2' && picture.complete")
        assert page.evaluate("error.textContent") == "" and page.evaluate("step.textContent") == "step 4 of 4"
        assert page.evaluate("pictures.size") >= 2  # it was seen to change
        (made,) = model.generate("a circle", 7, num_decode_steps=4, progress=False)
        assert page.evaluate("picture.src") == demo_server.data_url(made)
        other.write_text("no picture")
        page.drop("drop", other)
        page.wait("document.body.dataset.asked === '3'")
        assert page.evaluate("error.textContent").startswith("not a picture")
        assert page.evaluate("filename.textContent") == ""
        page.click("cycle_picture")
        assert page.evaluate("error.textContent") == "no picture yet: drop one first"
        page.drop("drop", path)
        page.wait("document.body.dataset.asked === '4' && shown.complete && shown.naturalWidth === 64")
        (ranked,) = model.caption(str(path), candidates=True, progress=False)
        rows = page.evaluate("[...candidates.rows].map(row => [row.cells[1].innerText, row.cells[0].innerText])")
        assert [[" ".join(text.split()), f"{score:.3f}"] for text, score in ranked] == [
            [" ".join(text.split()), score] for text, score in rows
        ]
        page.drop("drop", other)  # refused: what is shown stays the chosen one
        page.wait("document.body.dataset.asked === '5'")
        assert page.evaluate("error.textContent").startswith("not a picture")
        assert page.evaluate("filename.textContent") == path.name
        page.type("turns", "3")
        page.click("cycle_picture")
        page.wait("document.body.dataset.asked === '6'")
        kinds = "[...stages.children].map(stage => stage.tagName + stage.className)"
        assert page.evaluate(kinds) == ["IMG", "SPANarrow", "SPAN", "SPANarrow", "IMG", "SPANarrow", "SPAN"]
        page.click("cycle_text")
        page.wait("document.body.dataset.asked === '7'")
        assert page.evaluate("stages.firstChild.textContent") == model.cycle(["a circle"], 1)[0][0]
        assert page.evaluate("error.textContent") == ""
        page.screenshot(tmp_path / "demo.png")
        assert page.evaluate("about.textContent") == r"A <b>toy</b>\n"
        model.record["prompt"] = "a cross"
        page.open(f"http://127.0.0.1:{port}/")
        page.wait("document.getElementById('prompt').value === 'a cross'")
    print(f"screenshot: {tmp_path}/demo.png")
    assert Image.open(tmp_path / "demo.png").size[0] >= 1000


def test_the_main_serves_a_loaded_model(monkeypatch, capsys):
    served = []

    class Server:
        server_address = ("127.0.0.1", 81)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            served.append("closed")

        def serve_forever(self):
            served.append("served")

    monkeypatch.setattr(demo.generation, "load", lambda loading: (loading.model, loading.workdir))
    monkeypatch.setattr(demo.flags, "FLAGS", type("Flags", (), {"port": 81}))
    monkeypatch.setattr(demo_server, "make_server", lambda model, port: served.append((model, port)) or Server())
    for given in ({}, {"model": "exported"}, {"workdir": "runs/mine"}):
        settings = dataclasses.replace(demo.generation.Loading(), **given)
        monkeypatch.setattr(demo.flags_lib, "from_flags", lambda _, settings=settings: settings)
        served.clear()
        demo.main([])
        model = (given.get("model", "" if given else "scenes"), given.get("workdir", ""))
        assert served == [(model, 81), "served", "closed"] and "http://127.0.0.1:81" in capsys.readouterr().out
