"""tools.generation.generation: the same files whatever was killed, whoever shared the work, however it was cut."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from itit import sheets
from itit.config import DecodeConfig
from itit.pretrained import ITIT
from tests.helpers import finished_run, processes
from tests.helpers.common import ROOT
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools.generation import generation, inputs
from tools.generation.generation import Drawing, Loading, Sharing, Telling


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes that are started here have: the number of threads rounds products otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(Config of a small finished run, its model, folder of 7 pictures, their texts)."""
    folder = tmp_path_factory.mktemp("run")
    config, pairs = finished_run.of_scenes(folder)
    (folder / "pictures").mkdir()
    for i, (picture, _) in enumerate(pairs[:7]):
        Image.fromarray(picture).save(folder / "pictures" / f"{i}.png")
    return config, ITIT.from_run(config.train.workdir, device="cpu"), folder / "pictures", [t for _, t in pairs[:7]]


def files(folder):
    """Name -> bytes of all files below a folder, but for what the call was."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(name): (folder / name).read_bytes() for name in names if name.name != "settings.json"}


def prompts_of(texts):
    return [inputs.Prompt(text, i * 10) for i, text in enumerate(texts)]


def test_what_an_export_of_pictures_holds(run, tmp_path):
    _, model, _, texts = run
    drawing = Drawing(seed=3, num_decode_steps=3, guidance_scale=0.5, choice_temperature=4.0)
    assert generation.export_pictures(model, prompts_of(texts), str(tmp_path / "out"), drawing, 3, num_shown=5)
    made = model.generate(texts, 3, batch_size=3, num_decode_steps=3, guidance_scale=0.5, choice_temperature=4.0)
    lines = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert lines == [{"index": i, "prompt": text, "file": f"pictures/{i:06d}.png", "image_id": i * 10}
                     for i, text in enumerate(texts)]  # fmt: skip
    for line, picture in zip(lines, made, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / line["file"])), np.asarray(picture))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"pictures", "index.jsonl", "sheet.png",
                                                                   "settings.json"}  # fmt: skip
    panels = list(map(sheets.Panel, made[:5], texts))
    page = sheets.draw([sheets.Section("prompts and the pictures made from them", [panels])])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "sheet.png")), page)


def test_a_prompt_that_is_no_text_is_named_before_anything_is_made(run, tmp_path):
    prompts = [*prompts_of(["a"] * 5), inputs.Prompt("\udcff")]
    with pytest.raises(ValueError, match="^prompt 5: no text: half a character, '.udcff', at 0$"):
        generation.export_pictures(run[1], prompts, str(tmp_path / "out"), Drawing(), 2)
    assert not (tmp_path / "out").exists()


def test_the_flags_are_those_of_the_decoding():
    """Every setting of DecodeConfig but those of the synthesis; as trained with unless they are given."""
    names = {field.name for field in dataclasses.fields(DecodeConfig) if not field.name.startswith("synth_")}
    of_pictures, of_captions = generation.decode_of(Drawing()), generation.decode_of(Telling())
    assert names == of_pictures.keys() | of_captions.keys() and not of_pictures.keys() & of_captions.keys()
    assert set(of_captions) == {"beam_size", "length_penalty"}
    assert not any(value is not None for value in (*of_pictures.values(), *of_captions.values()))


def test_what_an_export_of_captions_holds(run, tmp_path):
    _, model, folder, _ = run
    pictures = inputs.pictures(str(folder))
    assert generation.export_captions(model, pictures, str(tmp_path / "out"), Telling(beam_size=3, candidates=True), 4)
    told = model.caption([str(folder / f"{i}.png") for i in range(7)], beam_size=3, candidates=True)
    results = json.loads((tmp_path / "out" / "captions.json").read_bytes())
    assert results == [{"image_id": i, "caption": ranked[0][0]} for i, ranked in enumerate(told)]
    lines = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    for i, (line, ranked) in enumerate(zip(lines, told, strict=True)):
        assert (line["image_id"], line["file"], line["caption"]) == (i, f"{i}.png", ranked[0][0])
        assert [found["caption"] for found in line["candidates"]] == [text for text, _ in ranked]
        np.testing.assert_allclose([found["score"] for found in line["candidates"]], [s for _, s in ranked], rtol=1e-4)
    assert (tmp_path / "out" / "sheet.png").exists()


def test_hosts_that_share_an_export_make_the_same_files(run, tmp_path):
    _, model, folder, texts = run
    drawing, pictures = Drawing(num_decode_steps=2), inputs.pictures(str(folder))

    def both(output, *sharing):
        done = generation.export_pictures(model, prompts_of(texts), str(tmp_path / output / "p"), drawing, 2, *sharing)
        told = generation.export_captions(model, pictures, str(tmp_path / output / "c"), Telling(), 2, *sharing)
        assert done == told
        return done

    assert both("alone")
    assert not both("shared", Sharing(1, 3)) and not both("shared", Sharing(0, 3)) and both("shared", Sharing(2, 3))
    assert files(tmp_path / "alone") == files(tmp_path / "shared")
    with pytest.raises(ValueError, match="--host_index=3: must be in"):
        both("shared", Sharing(3, 3))


def test_hosts_of_one_mesh_make_all_together_and_one_writes(run, tmp_path):
    """Real processes that know of each other, as on a TPU pod; in the place of its devices plain torch."""
    _, model, _, texts = run
    drawing = Drawing(num_decode_steps=2)

    def export(hosts, output, fails=False):
        model.backend.hosts = hosts
        settings = dataclasses.replace(drawing, seed=int(fails))
        return generation.export_pictures(model, prompts_of(texts), output, settings, 2)

    (tmp_path / "out" / "pictures").mkdir(parents=True)
    assert processes.run(export, 2, str(tmp_path / "out")) == [True, True]
    generation.export_pictures(model, prompts_of(texts), str(tmp_path / "alone"), drawing, 2)
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    errors = processes.run(export, 2, str(tmp_path / "out"), True)
    assert all("--seed was 0, is now 1" in str(error) for error in errors)


def test_a_picture_is_the_same_in_any_batch(run):
    """Noise is; so are pictures, but where a draw falls between two rounded products, which is rare in float32."""
    _, model, _, texts = run
    by_two, by_five = (np.stack(model.generate(texts, 1, batch_size=n, progress=False)).astype(int) for n in (2, 5))
    assert (np.abs(by_two - by_five).max((1, 2, 3)) <= 1).mean() >= 6 / 7


def test_other_settings_are_refused(run, tmp_path):
    _, model, folder, texts = run
    output, drawing = str(tmp_path / "out"), Drawing(num_decode_steps=2)
    generation.export_pictures(model, prompts_of(texts), output, drawing, 4)

    def again(texts=texts, drawing=drawing, size=4):
        generation.export_pictures(model, prompts_of(texts), output, drawing, size)

    again()
    with pytest.raises(ValueError, match="--seed was 0, is now 1; name another --output"):
        again(drawing=dataclasses.replace(drawing, seed=1))
    with pytest.raises(ValueError, match="--batch_size was 4, is now 3"):
        again(size=3)
    with pytest.raises(ValueError, match="--prompts was"):
        again(["a", *texts[1:]])
    with pytest.raises(ValueError, match="no prompts"):
        again([])
    with pytest.raises(ValueError, match="--batch_size=0: must be at least 1"):
        again(size=0)
    model.state.model.fingerprint, own = "another", model.state.model.fingerprint
    with pytest.raises(ValueError, match="--model was"):
        again()
    model.state.model.fingerprint = own


def test_settings_are_others_where_nothing_was_made(run, tmp_path):
    _, model, folder, _ = run
    (tmp_path / "bad.png").write_bytes(b"no picture")
    good = next(iter(inputs.pictures(str(folder))))
    bad = inputs.pictures(f"{tmp_path}/bad.png")
    with pytest.raises(ValueError, match="bad.png: not a picture"):
        generation.export_captions(model, [good, *bad], str(tmp_path / "out"), Telling(), 2)
    with pytest.raises(ValueError, match="settings.json: --pictures was"):  # the other host may be at work
        generation.export_captions(model, [good], str(tmp_path / "out"), Telling(), 2, Sharing(0, 2))
    assert generation.export_captions(model, [good], str(tmp_path / "out"), Telling(), 2)
    with pytest.raises(ValueError, match="settings.json: --pictures was"):
        generation.export_captions(model, [good, *bad], str(tmp_path / "out"), Telling(), 2)


def test_a_killed_export_ends_with_the_same_bytes(run, tmp_path):
    config, _, _, texts = run
    texts = texts * 6
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    arguments = [f"--workdir={config.train.workdir}", f"--prompts={tmp_path}/prompts.txt", f"--output={tmp_path}/out",
                 "--backend=cpu", "--batch_size=2", "--num_decode_steps=8", "--seed=5"]  # fmt: skip
    command = [sys.executable, "-m", "tools.generate", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    kills, pictures = 0, tmp_path / "out" / "pictures"
    for count in (1, 11):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not pictures.exists() or len(list(pictures.glob("0*.png"))) < count):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert not (tmp_path / "out" / "index.jsonl").exists() or not kills
    there = {path: path.stat().st_mtime_ns for path in pictures.glob("0*.png")}
    assert kills == 2 and 11 <= len(there) < len(texts)
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    whole = sum(1 for path, time in there.items() if path.stat().st_mtime_ns == time)
    assert whole >= len(there) - 2  # at most the batch that was cut is made again
    # With as many threads: their number rounds products otherwise.
    uncut = [part.replace(f"{tmp_path}/out", f"{tmp_path}/whole") for part in command]
    subprocess.run(uncut, cwd=ROOT, env=environment, capture_output=True, check=True)
    found = {name: data for name, data in files(tmp_path / "out").items() if ".tmp-" not in name}
    assert found == files(tmp_path / "whole")


def test_loading_takes_a_run_or_an_export(run, tmp_path):
    config, model, _, texts = run
    found = generation.load(Loading(workdir=config.train.workdir, backend="cpu"))
    assert found.fingerprint == model.fingerprint and found.record["averaged"]
    raw = generation.load(Loading(workdir=config.train.workdir, backend="cpu", weights="raw", compute_dtype="bf16"))
    assert raw.fingerprint != model.fingerprint and raw.record["compute_dtype"] == "bf16"
    for wrong in (Loading(), Loading(model="a", workdir="b")):
        with pytest.raises(ValueError, match="give --model=DIR"):
            generation.load(wrong)
    with pytest.raises(ValueError, match="--step and --weights are for --workdir"):
        generation.load(Loading(model="a", backend="cpu", step=3))
