"""The whole step on a mesh, captured, against the same step in plain torch on the processor."""

import pytest
import torch

from itit import inference
from itit.checkpoint import store
from itit.program import running
from itit.samples import Translator
from itit.training.state import frozen, load_state
from itit.xla import api, sharding
from tests.helpers import backend_parity
from tests.helpers.backend_parity import CPU, PAIRS_ONLY, config_of, differs, run_step, states
from tests.helpers.tiny import random_batch, seeds
from tests.xla.devices.small import MESHES, connect


@pytest.mark.parametrize("data, fsdp", MESHES)
@pytest.mark.parametrize("seed", seeds(1))
def test_losses_and_gradients_equal_plain_torch(data, fsdp, seed):
    backend_parity.check_losses_and_gradients(connect(data, fsdp), config_of(t2i_text_drop_prob=0.3), seed)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_captured_equals_lazy_bit_for_bit_and_shardings_stay(dtype):
    """Five steps with the optimizer, changing batches and rates; what else runs between them changes nothing."""
    data, fsdp = MESHES[len(MESHES) // 2]
    config = config_of(ema_decay=0.9, compute_dtype=dtype)
    ends, losses = [], []
    for mode in ("captured", "lazy"):
        mesh = connect(data, fsdp, xla_mode=mode)
        _, state = states(mesh, config, 11)
        number = len(state.tensors())
        mesh.pack(state)
        before = specs(mesh, state)
        assert len(before) < number / 3
        assert data * fsdp == 1 or sum("devices=" in spec for spec in before) > 20
        found, compiled, graphs = [], 0, []
        for step in range(5):
            with mesh.watch():
                metrics = run_step(mesh, state, config, step, rate=1e-3 * (step + 1))
            found.append({name: value.item() for name, value in metrics.items()})
            if mode == "captured" and step:
                assert (api.num_compilations(), list(mesh.run.graphs)) == (compiled, graphs)
            if step == 1:
                ids = mesh.to_device({"x": random_batch(config, 7)["i2t/image_ids"].numpy()})["x"]
                with state.averaged(), running(mesh.sampler):
                    empty = mesh.sampler(empty_text, state)
                    inference.caption_greedy(state.model, ids, empty).cpu()
            compiled, graphs = api.num_compilations(), list(getattr(mesh.run, "graphs", ()))
        assert specs(mesh, state) == before
        losses.append(found)
        ends.append(mesh.on_host(state.tensors()))
    assert losses[0] == losses[1]
    assert len({tuple(step.values()) for step in losses[0]}) == 5
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_a_loss_that_is_not_finite_changes_nothing():
    """NaN in a frozen weight: the program is the same, and what it updates stays bit for bit."""
    data, fsdp = MESHES[len(MESHES) // 2]
    mesh, config = connect(data, fsdp), config_of(ema_decay=0.9, skip_spikes=5.0)
    _, state = states(mesh, config, 5)
    mesh.pack(state)
    assert run_step(mesh, state, config, 0)["skipped"].item() == 0
    before = bits(mesh, state)
    name, weight = next(iter(state.t5.named_parameters()))
    kept, spec = weight.data, sharding.parameter_spec(name, tuple(weight.shape), fsdp)
    weight.data = mesh.mark(torch.full(weight.shape, torch.nan, dtype=weight.dtype).to(mesh.device), spec)
    api.sync(wait=True)
    compiled = api.num_compilations()  # reading a mesh's tensors may compile
    metrics = run_step(mesh, state, config, 1)
    assert metrics["skipped"].item() == 1 and not torch.isfinite(metrics["loss"].cpu())
    assert api.num_compilations() == compiled
    after = bits(mesh, state)
    assert all(torch.equal(after[name], before[name]) for name in before) and "optimizer/usual_norm" in before
    weight.data, compiled = kept, api.num_compilations()
    assert run_step(mesh, state, config, 2)["skipped"].item() == 0 and api.num_compilations() == compiled
    assert not torch.equal(bits(mesh, state)["model/text_decoder.head.bias"], before["model/text_decoder.head.bias"])


def bits(mesh, state):
    return {name: t.reshape(-1).view(torch.uint8) for name, t in mesh.on_host(state.tensors()).items()}


def specs(mesh, state):
    return [api.sharding_text(t) for t in mesh.packs.buffers(state.tensors().values())]


def empty_text(state):
    return state.empty_text()


def test_sampled_cycles_draw_anew_by_one_program():
    mesh, config = connect(*MESHES[-1]), config_of(num_decode_steps=2)
    plain, state = states(mesh, config, 3)
    ids = mesh.to_device({"x": random_batch(config, 7)["i2t/text_ids"].numpy()})["x"]
    translator = Translator(state, config, mesh, step=4)
    pictures, graphs = [translator.pictures(ids, "a").cpu()], len(mesh.sampler.graphs)
    for name in ("b", "a"):
        pictures.append(translator.pictures(ids, name).cpu())
    assert len(mesh.sampler.graphs) == graphs
    assert torch.equal(pictures[0], pictures[2]) and not torch.equal(pictures[0], pictures[1])
    rows, texts = list(range(len(ids))), random_batch(config, 7)["i2t/text_ids"].flip(0).numpy()
    batch = mesh.to_device({"x": texts})
    backwards = translator.pictures(batch["x"], "a", rows[::-1]).cpu()
    assert torch.equal(backwards.flip(0), pictures[0])  # each draws from its own number
    found = translator.candidates(translator.pictures(ids, "a"))
    expected = Translator(plain, config, CPU, step=4).candidates(pictures[0])
    assert torch.equal(found.texts.cpu(), expected.texts) and expected.texts.shape[1] == config.decode.beam_size > 1
    torch.testing.assert_close(found.scores.cpu(), expected.scores, atol=1e-4, rtol=1e-4)
    assert torch.equal(translator.captions(translator.pictures(ids, "a")).cpu(), found.texts.cpu()[:, 0])


@pytest.mark.parametrize("seed", seeds(1))
def test_bfloat16_is_as_near_as_its_precision(seed):
    backend_parity.check_bfloat16(connect(*MESHES[0]), seed)


def test_a_checkpoint_goes_on_under_another_mesh_and_in_plain_torch(tmp_path):
    config = config_of(ema_decay=0.9, **PAIRS_ONLY)
    meshes = [connect(*MESHES[0]), connect(*MESHES[-1])]
    plain, state = states(meshes[0], config, 2)
    meshes[0].pack(state)
    run_step(meshes[0], state, config, 0)
    store.save(str(tmp_path), 1, meshes[0].owned(state.tensors()), {"frozen": frozen(state)}, 1)
    _, tensors, _ = store.restore(str(tmp_path))
    continued = [(state, meshes[0]), (states(meshes[1], config, 2)[1], meshes[1]), (plain, CPU)]
    for other, backend in continued[1:]:
        assert not torch.equal(other.optimizer.count.cpu(), tensors["optimizer/count"])
        before = specs(backend, other) if backend is meshes[1] else []
        store.restore(str(tmp_path), lambda _, *saved: load_state(other, *saved, "run", backend))  # noqa: B023
        assert before == (specs(backend, other) if before else [])
        for name, tensor in other.tensors().items():
            assert torch.equal(tensor.detach().cpu(), tensors[name]), name
        backend.pack(other)
    first, *others = [run_step(backend, other, config, 1) for other, backend in continued]
    for other in others:
        for name, value in first.items():
            assert differs(value, other[name].cpu()) < 1e-5, name
