"""tools.report_emoji: shares against answers that are known, what is drawn, and a whole report of a small run."""

import json
import types

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import finished_run
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools import report_emoji
from tools.data.emoji import TONES

ROLES = ("waving hand", "cook", "man, bald")


def name_of(role, tone):
    head, _, tail = role.partition(", ")
    return f"{head}: {tone} skin tone" + (f", {tail}" if tail else "")


def role_key(role):
    head, _, tail = role.partition(", ")
    return f"{head}: *" + (f", {tail}" if tail else "")


@pytest.fixture
def roles():
    """role -> tone -> a random picture."""
    rng = np.random.default_rng()
    return {role_key(role): {tone: rng.integers(256, size=(64, 64, 3), dtype=np.uint8) for tone in TONES}
            for role in ROLES}  # fmt: skip


def near(picture, rng):
    """The picture with noise on it, still nearer to itself than to any other."""
    return np.clip(picture + rng.normal(0, 10, picture.shape), 0, 255).astype(np.uint8)


def test_shares_are_counted(roles):
    rng, names, captions, made, right = np.random.default_rng(), [], [], [], []
    for _ in range(60):
        role, tone = rng.choice(ROLES), rng.choice(TONES)
        says_role, says_tone, parsable, shows_tone = rng.integers(2, size=4).astype(bool)
        other_tone = rng.choice([t for t in TONES if t != tone])
        said = name_of(role if says_role else "singer", tone if says_tone else other_tone)
        names.append(name_of(role, tone))
        captions.append(said if parsable else "a red heart")
        made.append(near(roles[role_key(role)][tone if shows_tone else other_tone], rng))
        right.append([says_role and says_tone and parsable, says_role and parsable, says_tone and parsable, shows_tone])
    found = report_emoji.score(names, captions, made, roles)
    expected = dict(
        zip(("caption_exact", "caption_role", "caption_tone", "picture_tone"), np.mean(right, 0), strict=True)
    )
    assert found == pytest.approx(expected, abs=1e-4)


def write_set(folder, rng):
    """A folder emoji/: three roles in five tones, one in four, and a heart. Returns name -> uint8 [64, 64, 3]."""
    (folder / "emoji").mkdir(parents=True)
    names = [name_of(role, tone) for role in ROLES for tone in TONES]
    names += [name_of("pilot", tone) for tone in TONES[1:]] + ["red heart"]
    pictures = {name: rng.integers(256, size=(64, 64, 3), dtype=np.uint8) for name in names}
    lines = []
    for i, name in enumerate(names):
        Image.fromarray(pictures[name]).save(folder / "emoji" / f"{i}.png")
        lines.append(json.dumps({"file": f"{i}.png", "caption": name}))
    (folder / "emoji" / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return pictures


def test_roles_are_those_that_come_in_all_tones(tmp_path):
    pictures = write_set(tmp_path, np.random.default_rng())
    found = report_emoji.pictures_of_roles(str(tmp_path), 64, 10**4)
    assert found.keys() == {role_key(role) for role in ROLES}
    for role in ROLES:
        for tone in TONES:
            assert np.array_equal(found[role_key(role)][tone], pictures[name_of(role, tone)])
            assert report_emoji.nearest_tone(pictures[name_of(role, tone)], found[role_key(role)]) == tone


def test_what_is_drawn(roles):
    texts = [f"text {i}" for i in range(15)]
    shown = np.random.default_rng().integers(256, size=(15, 64, 64, 3), dtype=np.uint8)
    known = finished_run.Known(texts, shown)
    ids, made = torch.arange(15)[:, None], shown[::-1]
    batch, told = {"image_ids": ids, "text_ids": ids}, [f"told {i}" for i in range(15)]
    sections = report_emoji.sample_sections(known, batch, texts, told, made, known.words)
    drawn = [[panel for row in section.rows for panel in row] for section in sections]
    assert [panel.text for panel in drawn[0]] == texts[:12] and [panel.text for panel in drawn[1]] == told[:12]
    assert all(np.array_equal(panel.picture, made[i]) for i, panel in enumerate(drawn[0]))
    assert all(np.array_equal(panel.picture, shown[i]) for i, panel in enumerate(drawn[1]))
    assert len(drawn) == 4 and [len(panels) for panels in drawn[2:]] == [28, 28]


def test_a_whole_report(tmp_path, monkeypatch, capsys):
    pictures = write_set(tmp_path / "data", np.random.default_rng())
    pairs = [(pictures[name], name) for role in ROLES for name in (name_of(role, tone) for tone in TONES)]
    config, tensors = finished_run.finish(tmp_path, pairs, 60)
    seen, sample_sections = [], report_emoji.sample_sections

    def recorded(translator, batch, names, *rest):
        assert finished_run.same_weights(translator.state.model, tensors, "ema")
        seen.extend(names)
        return sample_sections(translator, batch, names, *rest)

    monkeypatch.setattr(report_emoji, "sample_sections", recorded)
    given = types.SimpleNamespace(workdir=config.train.workdir, data=str(tmp_path / "data"), num_test=15,
                                  output=str(tmp_path / "out"))  # fmt: skip
    monkeypatch.setattr(report_emoji.flags, "FLAGS", given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report_emoji.main([])
    assert sorted(seen) == sorted(text for _, text in pairs)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert (report["step"], report["num_test"]) == (finished_run.STEP, 15) and 0 <= report["picture_tone"] <= 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "samples.png", "curves.png"}
    given.workdir = str(tmp_path / "absent")
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "resolved.cfg").write_text((tmp_path / "run" / "resolved.cfg").read_text())
    with pytest.raises(ValueError, match="--workdir=.*absent: no checkpoint"):
        report_emoji.main([])
