"""What processes add up of a step: losses, and gradients while the backward pass still computes others."""

import contextlib

import torch
import torch.distributed as dist

from itit.eager import Alone

BUCKET_BYTES = 25 << 20  # gradients that are sent at once


class Exchange(Alone):
    """Sums over the processes of torch's default group, each of which has a share of the rows of the batch.

    Gradients are sums, too, as each loss is divided by what counts in the whole batch. They go in buckets, filled in
    the order in which they were ready in the pass before; a bucket is sent as soon as it and those before it are full.
    The first pass of a kind sends all at its end.

    Args:
      peers: whoever waits, tells it (see processes.py).
    """

    def __init__(self, peers, bucket_bytes=BUCKET_BYTES):
        self._peers, self._bucket_bytes = peers, bucket_bytes
        self._hooked, self._order, self._pass = None, [], None

    def sum(self, values):
        total = torch.stack(list(values.values()))
        self._wait(dist.all_reduce(total, async_op=True))
        return dict(zip(values, total.unbind(), strict=True))

    @contextlib.contextmanager
    def summing(self, module):
        parameters = [p for p in module.parameters() if p.requires_grad]
        if self._hooked is not module:
            self._hooked = module
            for p in parameters:
                p.register_post_accumulate_grad_hook(self._ready)
        self._pass = _Pass(self._cut(self._order))
        try:
            yield
            for bucket in self._cut([p for p in parameters if p.grad is not None and not self._pass.has_sent(p)]):
                self._pass.send(bucket)
            for work in self._pass.running:
                self._wait(work)
            self._learn(parameters, self._pass.came)
        finally:
            self._pass = None

    def _ready(self, p):
        if self._pass is not None:  # not so in microbatches before the last
            self._pass.ready(p)

    def _cut(self, parameters):
        """Lists of consecutive parameters, each full but the last."""
        buckets, room = [], 0
        for p in parameters:
            if room <= 0:
                buckets.append([])
                room = self._bucket_bytes
            buckets[-1].append(p)
            room -= p.numel() * p.element_size()
        return buckets

    def _learn(self, parameters, came):
        """The order of the next pass: that of the first process, so that all fill the same buckets."""
        if {id(p) for p in came} == {id(p) for p in self._order}:
            return
        numbers = {id(p): number for number, p in enumerate(parameters)}
        order = torch.tensor([numbers[id(p)] for p in came], device=came[0].device)
        self._wait(dist.broadcast(order, 0, async_op=True))
        self._order = [parameters[number] for number in order.tolist()]

    def _wait(self, work):
        with self._peers.waiting():
            work.wait()


class _Pass:
    """One backward pass. `buckets`: in the order in which they are sent. `running`: what was sent; `came`: parameters
    in the order in which their gradients were ready."""

    def __init__(self, buckets):
        self.running, self.came = [], []
        self._buckets, self._sent, self._next = buckets, set(), 0
        self._bucket_of = {id(p): number for number, bucket in enumerate(buckets) for p in bucket}
        self._missing = [len(bucket) for bucket in buckets]

    def ready(self, p):
        self.came.append(p)
        number = self._bucket_of.get(id(p))
        if number is None:
            return
        self._missing[number] -= 1
        while self._next < len(self._buckets) and not self._missing[self._next]:
            self.send(self._buckets[self._next])
            self._next += 1

    def send(self, bucket):
        flat = torch.cat([p.grad.reshape(-1) for p in bucket])
        for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            p.grad = part.view_as(p)  # holds the sum once it is there
        self._sent.update(map(id, bucket))
        self.running.append(dist.all_reduce(flat, async_op=True))

    def has_sent(self, p):
        return id(p) in self._sent
