"""What training says: what it will do, how far it is, what was changed on the way, what to type next."""

import re

from absl import logging

from itit import train
from itit.config import Config, replace
from itit.training import runs
from tests.training.test_train import data, run_here, settings, write_ids  # noqa: F401 (a fixture)


def test_a_run_says_what_it_will_do():
    tasks = dict(t2i_batch=2, i2t_batch=3, t2i2t="full", t2i2t_batch=4, t2i2t_warmup_steps=7)
    config = replace(Config(), num_steps=20, i2t2i="half", i2t2i_batch=5, i2t2i_warmup_steps=0, **tasks)
    assert train.plan(config, 3, 9) == (
        "steps 3 to 9 of 20; samples a step: t2i 2, i2t 3, t2i2t 4 from step 7, i2t2i 5"
    )
    alone = replace(config, t2i2t="off", t2i2t_batch=0, i2t2i="off", i2t2i_batch=0)
    assert train.plan(alone, 0, 20) == "steps 0 to 20 of 20; samples a step: t2i 2, i2t 3"


def test_what_to_type_next():
    config = replace(Config(), workdir="my runs/x", vqgan="v", vocabulary="w", num_steps=20)
    assert train.what_next(config, 20) == "to try it: python -m tools.demo --workdir='my runs/x'"
    assert train.what_next(replace(config, vocabulary=""), 20).endswith(" --workdir='my runs/x' --vocabulary=PATH")
    assert train.what_next(config, 19) == "the same command goes on"


def test_costs_of_the_steps_until_and_after_the_cycles_join():
    tasks = dict(t2i_batch=2, i2t_batch=2, i2t2i="half", i2t2i_batch=1, i2t2i_warmup_steps=9, t2i2t_warmup_steps=5)
    config = replace(Config(), t2i2t_batch=1, num_decode_steps=4, synth_cfg=False, **tasks)
    assert train.costs(config) == [(0, 12), (5, 12 + 9), (9, 12 + 9 + 7)]
    alone = replace(config, t2i2t="off", t2i2t_batch=0, i2t2i="off", i2t2i_batch=0)
    assert {cost for _, cost in train.costs(alone)} == {12}


def test_the_first_steps_of_a_call_are_told_and_settings_that_have_changed(data, tmp_path, capsys, caplog):  # noqa: F811
    caplog.set_level(logging.INFO)
    values = settings(data, workdir=str(tmp_path / "run"), num_steps=40, log_every=15, keep_best="t2i", eval_every=40,
                      checkpoint_every=5)  # fmt: skip
    assert run_here(values | {"stop_after_steps": 17}) == 0
    told = re.findall(r"^step (\d+)/40 ", capsys.readouterr().out, re.M)
    assert told == ["1", "10", "15", "17"] and "others up to step" not in caplog.text
    opened = {name: value for name, value in values.items() if name not in ("num_text_tokens", "vocab_size", "bos_id")}
    assert run_here(opened | {"stop_after_steps": 12, "learning_rate": 0.5, "synth_decode_steps": 2}) == 0
    assert re.findall(r"^step (\d+)/40 ", capsys.readouterr().out, re.M) == ["18", "27", "29"]
    (line,) = (r.getMessage() for r in caplog.records if "others up to step" in r.getMessage())
    place, _, changes = line.partition(": ")
    assert place == "settings that were others up to step 17" and set(changes.split(", ")) == {
        "--learning_rate 0.001 -> 0.5", "--synth_decode_steps None -> 2", "--stop_after_steps 17 -> 12"
    }  # fmt: skip
    assert f"taken from {tmp_path}/run/resolved.cfg: --num_text_tokens=8 --vocab_size=128 --bos_id=127" in caplog.text
    for folder in ("run", "run/best"):
        (begun, first), (changed, then) = runs.history(str(tmp_path / folder))
        assert (begun, changed) == (0, 17) and (first["learning_rate"], then["learning_rate"]) == ("0.001", "0.5")


def test_a_run_that_goes_on_says_what_changes_the_order_of_its_data(data, tmp_path, caplog):  # noqa: F811
    values = settings(data, workdir=str(tmp_path / "run"), num_steps=9)
    assert run_here(values | {"stop_after_steps": 2}) == 0
    other = write_ids(tmp_path / "other.tfrecord", 40)
    for step, changes in enumerate(
        ({}, {"read_ahead_mib": 9, "random_flip": False, "learning_rate": 1e-4}, {"shuffle_blocks": 2, "t2t_batch": 6},
         {"text_data": other, "shuffle_blocks": 2, "t2t_batch": 6}), 2
    ):  # fmt: skip
        caplog.clear()
        assert run_here(values | changes | {"stop_after_steps": 1}) == 0
        said = [r.getMessage() for r in caplog.records if "in another order" in r.getMessage()]
        if step < 4:
            assert not said
        elif step == 4:
            assert [line.split(":")[0] for line in said] == [
                f"--shuffle_blocks was 4 up to step {step}, is 2 now", f"--t2t_batch was 2 up to step {step}, is 6 now"
            ]  # fmt: skip
        else:
            (line,) = said
            was, now = line.split(" up to step 5, is ")
            assert re.fullmatch(r"data of --text_data was \w+ \(text_data: .+\)", was)
            assert re.match(r"\w+ \(text_data: 40 records", now) and was.split()[4] != now.split()[0]
