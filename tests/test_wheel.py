"""A wheel, installed and used in another folder, has what the sources have."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers.common import ROOT
from tests.test_house import tracked_files

FLAGFILE = ROOT / "launch" / "flagfiles" / "figure5" / "right_pairs_10.cfg"  # names one in another folder, and that one
USE = f"""
import http.client, pathlib, threading
import itit, tools
from itit import flags
from tools.generation import demo_server

print(pathlib.Path(itit.__file__).parent.parent)
config = flags.from_flagfile({str(FLAGFILE)!r})
print(config.data.paired_data, config.objective.t2i_batch, config.model.num_image_tokens)
server = demo_server.make_server(None, 0)
threading.Thread(target=server.serve_forever, daemon=True).start()
connection = http.client.HTTPConnection(*server.server_address)
connection.request("GET", "/")
answer = connection.getresponse()
print(answer.status, len(answer.read()))
model = itit.ITIT.from_pretrained("scenes", device="cpu")
print(model.generate(model.record["prompt"], num_decode_steps=1, progress=False)[0].size)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel of the sources holds."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in tracked_files():
        (folder / "sources" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / "sources" / path)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for command in (
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir=.", "./sources"],
        ["install", "--no-deps", "--target=site", "--no-index", "--find-links=.", "itit"],
    ):
        done = subprocess.run([*pip, *command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "site"


def test_every_module_the_page_and_the_model_are_in_it(installed):
    there = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    wanted = {str(path) for path in tracked_files() if path.parts[0] in ("itit", "tools")}
    assert {path for path in wanted if path.endswith((".py", ".html")) or "/shipped/" in path} <= there
    assert not {path for path in there if path.startswith(("tests", "launch"))}


def test_it_works_from_another_folder(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place, data, page, picture = done.stdout.splitlines()
    assert place == str(installed)
    assert data == "gs://BUCKET/cc3m/*.tfrecord,gs://BUCKET/webli_pairs_10/*.tfrecord 1024 256"
    assert page == f"200 {(ROOT / 'tools' / 'generation' / 'demo.html').stat().st_size}"
    assert picture == "(64, 64)"
