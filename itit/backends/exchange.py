"""What processes send each other in a step: losses, gradients while others are still computed, weights."""

import collections
import contextlib

import torch
import torch.distributed as dist

from itit.train_step import Alone

BUCKET_BYTES = 25 << 20  # of one message
MESSAGES = 4  # of weights, under way at once


class Exchange(Alone):
    """Sums over the processes of torch's default group, each of which has a share of the rows of the batch.

    Gradients are sums, too, as each loss is divided by what counts in the whole batch. They go in buckets, filled in
    the order in which they were ready in the pass before; a bucket is sent as soon as it and those before it are full.
    The first pass of a kind sends all at its end.

    Args:
      index: which process this is, of `count`.
      peers: whoever waits, tells it (see processes.py).
      splits: whether only its owner gets a parameter's gradient, updates it, and sends it to the others.
    """

    def __init__(self, index, count, peers, splits=False, bucket_bytes=BUCKET_BYTES):
        self.index, self.count, self.splits = index, count, splits
        self._peers, self._bucket_bytes = peers, bucket_bytes
        self._owners, self._order, self._pass = {}, [], None

    def own(self, module):
        """Gives the parameters of a module to owners, about a bucket to each in turn. Returns name -> owner."""
        named, loads, owner, found = list(module.named_parameters())[::-1], [0] * self.count, 0, {}
        size = min(self._bucket_bytes, sum(p.nbytes for _, p in named) // (4 * self.count))
        for name, p in named:
            self._owners[p] = found[name] = owner
            loads[owner] += p.nbytes
            if loads[owner] - min(loads) > size:
                owner = loads.index(min(loads))
        for p in module.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self._ready)
        return found

    # ------------------------------------------------------------------------------------------ a step

    def sum(self, values):
        total = torch.stack(list(values.values()))
        self._wait(dist.all_reduce(total, async_op=True))
        return dict(zip(values, total.unbind(), strict=True))

    @contextlib.contextmanager
    def summing(self, module):
        self._pass = _Pass(self._cut(self._order), self._send)
        try:
            yield
            left = [p for p in module.parameters() if p.grad is not None and p not in self._pass.sent]
            for bucket in self._cut(left):
                self._pass.send(bucket)
            for work in self._pass.running:
                self._wait(work)
            self._learn(list(module.parameters()), self._pass.came)
        finally:
            self._pass = None
        for p, owner in self._owners.items() if self.splits else ():
            if owner != self.index:
                p.grad = None

    def update(self, module):
        if self.splits:
            self._tell({p: p.data for p in module.parameters()})

    def all_of(self, tensors):
        """What belongs to every parameter, where this process has it of its own: parameter -> tensor of its shape."""
        found = {p: tensors[p] if owner == self.index else torch.empty_like(p.data)
                 for p, owner in self._owners.items()}  # fmt: skip
        self._tell(found)
        return found

    # ------------------------------------------------------------------------------------------ messages

    def _ready(self, p):
        if self._pass is not None:  # not so in microbatches before the last
            self._pass.ready(p)

    def _cut(self, parameters):
        """Buckets: lists of consecutive parameters, of one owner where only that one is told."""
        buckets, room, last = [], 0, None
        for p in parameters:
            owner = self._owners[p]
            if room <= 0 or self.splits and owner != last:
                buckets.append([])
                room, last = self._bucket_bytes, owner
            buckets[-1].append(p)
            room -= p.nbytes
        return buckets

    def _send(self, bucket):
        """Begins to add up the gradients of a bucket, which from now on are parts of one tensor."""
        flat = torch.cat([p.grad.reshape(-1) for p in bucket])
        for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            p.grad = part.view_as(p)
        if self.splits:
            return dist.reduce(flat, self._owners[bucket[0]], async_op=True)
        return dist.all_reduce(flat, async_op=True)

    def _tell(self, tensors):
        """Sets what belongs to parameters to what their owners have: parameter -> tensor of its shape."""
        running = collections.deque()

        def finish():
            work, bucket, flat = running.popleft()
            self._wait(work)
            if self._owners[bucket[0]] != self.index:
                for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                    tensors[p].copy_(part.view_as(p))

        for bucket in self._cut(tensors):
            flat = torch.cat([tensors[p].reshape(-1) for p in bucket])
            running.append((dist.broadcast(flat, self._owners[bucket[0]], async_op=True), bucket, flat))
            if len(running) > MESSAGES:
                finish()
        while running:
            finish()

    def _learn(self, parameters, came):
        """The order of the next pass: that of process 0, so that all fill the same buckets."""
        if set(came) == set(self._order):
            return
        numbers = {p: number for number, p in enumerate(parameters)}
        order = torch.tensor([numbers[p] for p in came], device=came[0].device)
        self._wait(dist.broadcast(order, 0, async_op=True))
        self._order = [parameters[number] for number in order.tolist()]

    def _wait(self, work):
        with self._peers.waiting():
            work.wait()


class _Pass:
    """One backward pass.

    Args:
      buckets: in the order in which they are sent.
      send: begins to add one up, and returns what to wait for.

    `running`: what was sent; `sent`: the parameters in it; `came`: parameters as their gradients were ready.
    """

    def __init__(self, buckets, send):
        self.running, self.sent, self.came = [], set(), []
        self._buckets, self._send, self._next = buckets, send, 0
        self._bucket_of = {p: number for number, bucket in enumerate(buckets) for p in bucket}
        self._missing = [len(bucket) for bucket in buckets]

    def ready(self, p):
        self.came.append(p)
        if p not in self._bucket_of:
            return
        self._missing[self._bucket_of[p]] -= 1
        while self._next < len(self._buckets) and not self._missing[self._next]:
            self.send(self._buckets[self._next])
            self._next += 1

    def send(self, bucket):
        self.running.append(self._send(bucket))
        self.sent.update(bucket)
