"""Gradients of several processes are added up in buckets, while those of other layers are still computed."""

import pytest
import torch

from itit.backends.connect import connect
from itit.backends.exchange import Exchange
from itit.backends.processes import launched
from itit.config import TrainConfig
from tests.helpers import processes
from tests.helpers.tiny import seeds

LAYERS, SIZE, COUNT = 6, 8, 3
TWO_LAYERS = 2 * SIZE * SIZE * 4  # bytes of a bucket


def network(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(*(torch.nn.Linear(SIZE, SIZE) for _ in range(LAYERS)))


def loss_of(net, layers, rank):
    return net[:layers](torch.randn(4, SIZE, generator=torch.Generator().manual_seed(rank))).square().sum()


def passes(seed, splits):
    """Of passes through all layers, all but the last, all, all: gradients; which owner each has; messages that went
    before the gradient that comes last was there, and in all."""
    config = TrainConfig(backend="cpu")
    with launched(config) as started:
        connect(config, started)
        net, sent, found, early = network(seed), [], [], []
        exchange = Exchange(started.index, started.count, started.peers, splits, TWO_LAYERS)
        owners, send = exchange.own(net), exchange._send
        exchange._send = lambda bucket: sent.append(bucket) or send(bucket)
        net[0].weight.register_hook(lambda grad: early.append(len(sent)))
        for layers in (LAYERS, LAYERS - 1, LAYERS, LAYERS):
            sent.clear()
            with exchange.summing(net):
                loss_of(net, layers, started.index).backward()
            found.append({name: p.grad.numpy().copy() for name, p in net.named_parameters() if p.grad is not None})
            net.zero_grad()
        started.close()
    mine = {name for name, owner in owners.items() if owner == started.index or not splits}
    return found, mine, early, len(sent)


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("seed", seeds(1))
def test_gradients_are_sums_and_go_while_others_are_computed(splits, seed):
    found, shares = processes.results(processes.launch(passes, COUNT, seed, splits)), []
    for gradients, mine, early, count in found:
        shares.append(mine)
        for part, layers in zip(gradients, (LAYERS, LAYERS - 1, LAYERS, LAYERS), strict=True):
            net = network(seed)
            sum(loss_of(net, layers, rank) for rank in range(COUNT)).backward()
            wanted = {name: p.grad for name, p in net.named_parameters() if p.grad is not None and name in mine}
            assert part.keys() == wanted.keys()
            for name, gradient in wanted.items():
                torch.testing.assert_close(torch.from_numpy(part[name]), gradient)
        assert early[0] == 0 and 2 <= early[-1] < count  # the first pass has yet to learn in which order they come
    assert not splits or sum(map(len, shares)) == len(set().union(*shares)) == 2 * LAYERS
