"""Training on a mesh as a user does it: stopped, continued, and given what a mesh cannot split."""

import threading

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from itit import train
from itit.checkpoint import store
from itit.xla import api
from tests.training.test_train import run_here, settings, write_ids
from tests.xla.devices.small import MESHES

SIZES = dict(
    backend="xla", xla_cache="", depth=1, image_decoder_depth=1, text_decoder_depth=1, t2i2t_warmup_steps=0,
    i2t2i_warmup_steps=0, num_decode_steps=2, num_steps=5, **{f"{task}_batch": 8 for task in ("t2i", "i2t", "t2i2t",
    "i2t2i")}, t2t_batch=0, i2i_batch=0, mesh_data=MESHES[-1][0], mesh_fsdp=MESHES[-1][1],
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_ids(folder / "ids.tfrecord", 64)
    return folder


def test_a_stopped_run_goes_on_bit_for_bit(data, tmp_path):
    ends = []
    for name, pieces in (("whole", [4]), ("parts", [3, 1])):
        values = settings(data, **SIZES, workdir=str(tmp_path / name))
        for piece in pieces:
            assert run_here(values | {"stop_after_steps": piece}) == 0
        ends.append(store.restore(str(tmp_path / name)))
    (step, whole, _), (other_step, parts, _) = ends
    assert step == other_step == 4 and whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert np.array_equal(tensor.numpy(), parts[name].numpy()), name
    events = EventAccumulator(str(tmp_path / "whole" / "tensorboard"))
    events.Reload()
    assert {"time/to_first_step", "programs/made", "programs/from_cache"} <= set(events.Tags()["scalars"])
    losses = [point.value for point in events.Scalars("loss")]
    assert len(losses) == len(set(losses)) == 4 and all(0 < loss < 50 for loss in losses)


def test_what_a_mesh_cannot_split_ends_in_one_line(data, tmp_path):
    values = settings(data, **SIZES, workdir=str(tmp_path / "run"))
    devices = MESHES[-1][0] * MESHES[-1][1]
    with pytest.raises(ValueError, match=f"--mesh_data=3 --mesh_fsdp=5: their product must be the {devices} devices"):
        run_here(values | {"mesh_data": 3, "mesh_fsdp": 5})
    if devices > 1:
        with pytest.raises(ValueError, match=f"--i2t_batch=12: must be a multiple of {devices} devices"):
            run_here(values | {"i2t_batch": 12})


def test_input_is_awaited_while_the_devices_compute(data, tmp_path, monkeypatch):
    """A step is started before the next batch is there, and nothing is read from the devices but where it is logged."""
    started, reads = [threading.Event() for _ in range(6)], []
    batch, step, prefetch = train.Streams.batch, train.train_step, train.prefetch

    def gated(streams, number):
        assert number == 0 or number > 5 or started[number - 1].wait(300), "the step waits for the batch after it"
        return batch(streams, number)

    def noted(*args):
        found = step(*args)
        started[len(reads) - 1].set()
        return found

    def counted(*args):
        batches = prefetch(*args)

        class Counting(type(batches)):
            def __next__(self):
                reads.append((api.counters.metric_data("InboundData") or [0])[0])
                return super().__next__()

        batches.__class__ = Counting
        return batches

    monkeypatch.setattr(train.Streams, "batch", gated)
    monkeypatch.setattr(train, "train_step", noted)
    monkeypatch.setattr(train, "prefetch", counted)
    values = settings(data, **SIZES, workdir=str(tmp_path), prefetch=1) | {"num_steps": 6, "log_every": 3}
    assert run_here(values) == 0
    assert reads[0] < reads[1] == reads[2] < reads[3] == reads[4] == reads[5]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert all(0 <= point.value <= 1 for point in events.Scalars("rate/input_wait"))
