"""A run that begins with the weights of another one, or of an export."""

import pytest
import torch

from itit import ITIT
from itit.checkpoint import store
from itit.training.initial import initialise
from tests.training.test_train import data, run_here, settings  # noqa: F401
from tools import export, train_sentencepiece


def finished(folder, data, **changes):  # noqa: F811
    values = settings(data, workdir=str(folder), num_steps=2, t2i2t_warmup_steps=9, i2t2i_warmup_steps=9, **changes)
    assert run_here(values) == 0
    return values, store.restore(str(folder))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("runs") / "trained"
    return folder, *finished(folder, data, ema_decay=0.5)


def began(folder):
    """The weights that a run of one step without a learning rate ends with are those that it began with."""
    step, tensors, _ = store.restore(str(folder))
    assert step == 1
    return tensors


def one_step(data, folder, source, **changes):  # noqa: F811
    return settings(data, workdir=str(folder), init_from=str(source), num_steps=1, learning_rate=0.0, lr_warmup_steps=0,
                    seed=7, t2i2t_warmup_steps=9, i2t2i_warmup_steps=9, **changes)  # fmt: skip


def test_of_a_run_the_averages(data, trained, tmp_path):  # noqa: F811
    folder, _, (_, before, _) = trained
    assert run_here(one_step(data, tmp_path / "new", folder, ema_decay=0.9)) == 0
    after = began(tmp_path / "new")
    names = [name.removeprefix("model/") for name in before if name.startswith("model/")]
    assert names and any(
        not torch.equal(before[f"model/{n}"], before.get(f"ema/{n}", before[f"model/{n}"])) for n in names
    )
    for name in names:
        expected = before.get(f"ema/{name}", before[f"model/{name}"])
        assert torch.equal(after[f"model/{name}"], expected), name
        if f"ema/{name}" in after:
            torch.testing.assert_close(after[f"ema/{name}"], expected, rtol=1e-6, atol=1e-7)


def test_of_an_export_and_not_again_after_the_first_step(data, trained, tmp_path):  # noqa: F811
    _, values, found = trained
    config = export.runs.settings(values["workdir"])
    export.export(config, found, str(tmp_path / "exported"), False, 2**30, None)
    assert run_here(one_step(data, tmp_path / "new", tmp_path / "exported")) == 0
    after = began(tmp_path / "new")
    for name, tensor in found[1].items():
        if name.startswith("model/"):
            assert torch.equal(after[name], tensor), name
    # The run goes on from its own checkpoint, wherever the other weights are now.
    again = one_step(data, tmp_path / "new", tmp_path / "gone")
    assert run_here(again | {"num_steps": 2}) == 0


def test_another_vocabulary_of_equal_size_is_refused(data, tmp_path):  # noqa: F811
    words = tmp_path / "words.model"
    words.write_bytes((data / "words.model").read_bytes())
    values, _ = finished(tmp_path / "one", data, vocabulary=str(words))
    exported, found = str(tmp_path / "exported"), store.restore(values["workdir"])
    export.export(export.runs.settings(values["workdir"]), found, exported, False, 2**30, None)
    words.write_bytes(train_sentencepiece.train(["other words"] * 5, 20))
    with pytest.raises(ValueError, match="--vocabulary: .*one, checkpoint of step 2 was trained with another vocab"):
        run_here(values | {"num_steps": 3})
    with pytest.raises(ValueError, match="--vocabulary: .*one, checkpoint of step 2 was trained with another vocab"):
        run_here(one_step(data, tmp_path / "new", tmp_path / "one", vocabulary=str(words)))
    with pytest.raises(ValueError, match="--vocabulary: .*exported was trained with another vocabulary"):
        run_here(one_step(data, tmp_path / "new", exported, vocabulary=str(words)))
    with pytest.raises(ValueError, match="--vocabulary: .* was trained with another vocabulary"):
        ITIT.from_run(values["workdir"])
    assert run_here(one_step(data, tmp_path / "new", tmp_path / "one")) == 0  # ids are compared beside their shards


def test_what_does_not_fit_in_one_line(data, trained, tmp_path):  # noqa: F811
    folder, _, _ = trained
    with pytest.raises(ValueError, match=r"--init_from=.*is \(.*\), this run has \(.*tensors in all do not fit"):
        run_here(one_step(data, tmp_path / "a", folder) | {"embed_dim": 64})
    with pytest.raises(ValueError, match="--t5_weights: .* was trained with other weights"):
        run_here(one_step(data, tmp_path / "b", folder) | {"t5_seed": 5})
    with pytest.raises(ValueError, match="nowhere"):
        run_here(one_step(data, tmp_path / "c", tmp_path / "nowhere"))
    assert callable(initialise)
