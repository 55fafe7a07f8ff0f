"""tools.bench_generate: what is timed does what it says; numbers end in the right cells. Nothing here tests speed."""

import types

import pytest
import torch

from itit import config as config_lib
from itit.backends.local import Local
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)

pytest.importorskip("muse_maskgit_pytorch", reason="the peers of the extra `bench` are not installed")
from tools import bench_generate  # noqa: E402
from tools.timing import peers  # noqa: E402


@pytest.fixture(scope="module")
def ours():
    config, model, _ = bench_generate.itit("nano")
    config = config_lib.replace(config, num_decode_steps=3)
    small = config_lib.VqganConfig(channels=8, channel_multipliers=(1, 1, 1, 1, 2), num_res_blocks=1, latent_dim=4)
    return config, model, bench_generate.VQGAN(small).eval()


def test_our_calls_make_what_the_table_says(ours):
    runs = bench_generate.caption_runs(*ours, 2, Local("cpu"))
    for name, (call, _) in runs.items():
        texts = call()
        assert texts.shape == (2, 64) and not (texts == 1).any(), name  # the full length
    runs = bench_generate.picture_runs(*ours, 2, Local("cpu"))
    made = [call() for call, _ in runs.values()]
    assert made[0].shape == made[1].shape == (2, 256) and made[2].shape == (2, 256, 256, 3)
    assert made[0].max() < 8192 and not torch.equal(made[0], made[1])


def test_peers_make_as_many_tokens():
    call, _ = peers.git("nano", 2, 5, 4)
    assert call().shape == (2, 1 + 5)
    for peer in (peers.amused, peers.muse):
        call, model = peer("nano", 2, 3, 3.0)
        ids = call()
        assert ids.shape == (2, 16, 16) and (ids >= 0).all() and (ids < peers.CODES).all()
        assert not torch.equal(call(), ids)


def test_parameters_of_the_peers_are_about_ours():
    """Counted on the device "meta", where nothing is allocated."""
    with torch.device("meta"):
        config = config_lib.replace(config_lib.Config(), t5_size=peers.T5_SIZE).resolve()
        assert config.model.text_feature_dim == peers.TEXT_DIM
        model = bench_generate.ITITModel(config.model)
        found = {"git": peers.git("B", 1, 1, 1)[1], "amused": peers.amused("B", 1, 1, 3.0)[1],
                 "muse": peers.muse("B", 1, 1, 3.0)[1]}  # fmt: skip

    def count(*modules):
        return sum(p.numel() for module in modules for p in module.parameters()) / 1e6

    telling, drawing = count(model.encoder, model.text_decoder), count(model.encoder, model.image_decoder)
    assert 0.8 < count(found["git"]) / telling < 1.25
    assert 0.8 < count(found["amused"]) / drawing < 1.25
    assert 0.8 < count(found["muse"]) / drawing < 1.25


def test_all_take_turns_and_the_median_counts(monkeypatch):
    order = []
    runs = {name: (lambda name=name: order.append(name), []) for name in "ab"}
    ticks = iter([0, 9, 9, 18, 18, 24, 24, 30, 30, 31, 31, 35, 35, 38, 38, 40, 40, 45, 45, 46])
    monkeypatch.setattr(bench_generate, "time", types.SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert bench_generate.measure(runs, 3) == {"a": 3, "b": 2}  # 1, 3, 5 and 4, 2, 1 after the warm-up
    assert order == ["a", "b"] * 5


def test_a_table():
    part = torch.nn.Linear(999, 1000)
    runs = {"ours": (None, [part]), "theirs": (None, [part, part, torch.nn.Linear(1999, 1000)])}
    assert bench_generate.table("captions", runs, {"ours": 2.0, "theirs": 5.0}, 4) == [
        "| | parameters | captions/s | time, of the first |", "|---|---|---|---|",
        "| ours | 1 M | 2 | 1.00 |", "| theirs | 3 M | 0.8 | 2.50 |"]  # fmt: skip
