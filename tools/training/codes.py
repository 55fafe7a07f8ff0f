"""The codebook in training: running means of what each code rounds, and new places for dead codes.

The running means minimise VQ-VAE's codebook term, as its authors' second form does (arXiv:1711.00937, appendix A.1).

Shapes: M encoder outputs of a batch, D code width, C codebook.
"""

import math

import torch
import torch.nn.functional as F

EMA_DECAY = 0.99
DEAD_SHARE = 0.02  # a code below this share of the mean use is dead
MAX_CANDIDATES = 8192  # outputs that new places are drawn from


class CodeAverages:
    """Running means of what each code rounds; the codebook `table` [C, D] follows them from the first `update` on."""

    def __init__(self, table):
        self.count = torch.zeros(len(table), device=table.device)  # [C], running mean of uses a step
        self.total = torch.zeros_like(table)  # [C, D], running mean of their sum

    def state(self):
        """Every tensor of the state by name, to save or to load in place."""
        return {"count": self.count, "total": self.total}

    @torch.no_grad()
    def update(self, table, outputs, ids):
        """Moves the means, and with them the table, towards this step's outputs [M, D], rounded to ids [M].

        Returns the number of codes used in this step.
        """
        uses = F.one_hot(ids, len(table)).to(outputs.dtype)  # [M, C]
        now = uses.sum(0)
        self.count.lerp_(now, 1 - EMA_DECAY)
        self.total.lerp_(uses.T @ outputs, 1 - EMA_DECAY)
        used = (self.count > 1e-6)[:, None]
        table.copy_(torch.where(used, self.total / self.count[:, None], table))
        return (now > 0).sum()

    def perplexity(self):
        """exp(entropy) of the use of the codes: C if all are used alike, 1 if only one is."""
        share = self.count / self.count.sum().clamp(min=1e-9)
        return torch.exp(-(share * share.clamp(min=1e-9).log()).sum())


def dead(count):
    """int64 [up to C], codes used less than DEAD_SHARE of the mean."""
    return (count < DEAD_SHARE * count.mean()).nonzero()[:, 0]


def draw(outputs, rows, table, count, total, generator):
    """Sets codes `rows` to outputs [M, D], each drawn in proportion to its squared distance from all other codes
    (k-means++), so that common outputs do not fill the table with copies of themselves.

    All are on the host; `table` [C, D], `count` [C] and `total` [C, D] are changed in place.
    """
    num_outputs = len(outputs)
    outputs = outputs[:: -(-num_outputs // MAX_CANDIDATES)]
    rest = torch.ones(len(table), dtype=torch.bool)
    rest[rows] = False
    distance = torch.full((len(outputs),), math.inf)
    if rest.any():
        distance = torch.cdist(outputs, table[rest]).amin(1).square()
    for row in rows.tolist():
        chances = distance.nan_to_num(posinf=1.0) + 1e-12
        pick = torch.multinomial(chances, 1, generator=generator).item()
        table[row] = outputs[pick]
        distance = torch.minimum(distance, (outputs - outputs[pick]).square().sum(1))
    # A new code starts with little weight: its first uses place it.
    count[rows] = DEAD_SHARE * num_outputs / len(table)
    total[rows] = table[rows] * count[rows, None]
