"""The caches of a token-by-token decoder: what each token sees. See also test_text_decoder.py."""

import torch

from itit.models import cache as caches
from itit.ops import attend, join_heads, split_heads
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)

B, M, L, D, H = 3, 5, 4, 12, 3


def test_each_token_sees_the_memory_and_the_text_so_far(way):
    mask, layers = torch.rand(B, M) < 0.7, [torch.randn(2, B, M, D) for _ in range(2)]
    mask[:, 0] = True
    cache = caches.make_cache(mask, [tuple(layer) for layer in layers], L, H)
    assert type(cache).__name__ == {"plain": "Cache", "xla": "WideCache"}[way]
    tokens = torch.randn(2, L, 3, B, 1, D)  # layer, position, (q, k, v)
    for position in range(L):
        for layer, (memory, text) in enumerate(zip(layers, tokens, strict=True)):
            found = cache.look(layer, torch.tensor([position]))(*text[position])
            k, v = (torch.cat([memory[i], *text[: position + 1, 1 + i]], 1) for i in range(2))
            seen = torch.cat([mask, torch.ones(B, position + 1, dtype=torch.bool)], 1)
            q, k, v = (split_heads(x, H) for x in (text[position, 0], k, v))
            torch.testing.assert_close(found, join_heads(attend(q, k, v, seen[:, None, None])))
