"""Decoding against straight-line NumPy and Python on random logits, and beam search also against transformers."""

import functools
import math

import numpy as np
import pytest
import torch
import transformers

from itit import config as config_lib
from itit import decoding, masking
from itit.config import DecodeConfig
from itit.noise import gumbel
from itit.program import Eager, running
from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)

# The specification's two lists for 256 tokens in 24 steps.
MASKED = [256, 255, 253, 251, 247, 242, 236, 229, 221, 212, 203, 192, 181, 168, 155, 142, 128, 113, 97, 82, 66, 49, 33,
          16]  # fmt: skip
COMMITTED = [1, 2, 2, 4, 5, 6, 7, 8, 9, 9, 11, 11, 13, 13, 13, 14, 15, 16, 15, 16, 17, 16, 17, 16]


def count_masked(ids, num_steps, mask_id, codes=5):
    """Masked tokens of each sample at every call of logits_fn: [steps, B], and the tokens that come out."""
    seen = []

    def logits_fn(current, step, noise):
        assert step == len(seen)
        seen.append((current == mask_id).sum(1).tolist())
        return torch.randn(*current.shape, codes)

    out = decoding.parallel_decode([logits_fn] * num_steps, ids, small.Recorded(), DecodeConfig(), mask_id)
    return seen, out


def test_schedule_of_256_tokens_in_24_steps():
    seen, out = count_masked(torch.full((3, 256), 99), 24, 99)
    assert seen == [[count] * 3 for count in MASKED]
    assert (-np.diff([*MASKED, 0])).tolist() == COMMITTED
    assert ((out >= 0) & (out < 5)).all()


def test_schedule_of_other_sizes_and_of_partly_known_pictures():
    # Sizes where the products of float32 would round up to the next whole number are among them.
    for num_tokens, num_steps in [(16, 16), (64, 39), (144, 51), (64, 1), (64, 64), (9, 4)]:
        seen, _ = count_masked(torch.full((1, num_tokens), 7), num_steps, 7)
        assert [row[0] for row in seen] == masking.decode_schedule(num_tokens, num_steps)
    ids = torch.randint(5, (6, 64))
    counts = [0, 1, 2, 17, 40, 64]
    for row, count in zip(ids, counts, strict=True):
        row[torch.randperm(64)[:count]] = 7
    seen, out = count_masked(ids, 8, 7)
    expected = []
    for step in range(8):
        expected.append(counts if step == 0 else [
            min(now, max(1, min(now - 1, math.floor(start * math.cos(math.pi / 2 * step / 8)))))
            for now, start in zip(expected[-1], counts, strict=True)
        ])  # fmt: skip
    assert seen == expected
    known = ids != 7
    assert torch.equal(out[known], ids[known]) and (out < 5).all()


def reference_decode(logits_of, ids, noise, num_steps, mask_id, temperature, anneal):
    """Sample by sample and token by token, float64."""
    ids = ids.numpy().copy()
    start = [(row == mask_id).sum() for row in ids]
    masked_now = list(start)
    for s in range(num_steps):
        logits = logits_of(ids, s)
        for b, row in enumerate(ids):
            confidence = {}
            for i in np.flatnonzero(row == mask_id):
                log_probs = logits[b, i] - np.log(np.exp(logits[b, i]).sum())
                token = np.argmax(log_probs - np.log(-np.log(noise.draws[f"token{s}"][b, i].double().numpy())))
                row[i] = token
                confidence[i] = log_probs[token]
                if s < num_steps - 1:
                    scale = temperature * (1 - (s + 1) / num_steps) if anneal == "linear" else temperature
                    confidence[i] -= scale * math.log(-math.log(float(noise.draws[f"choice{s}"][b, i])))
            if s < num_steps - 1 and confidence:
                wanted = math.floor(start[b] * math.cos(math.pi / 2 * (s + 1) / num_steps))
                masked_now[b] = max(1, min(masked_now[b] - 1, wanted))
                for i in sorted(confidence, key=confidence.get)[: masked_now[b]]:
                    row[i] = mask_id
    return ids


@pytest.mark.parametrize("anneal", ["linear", "constant"])
@pytest.mark.parametrize("temperature", [0.0, 4.5, 32.0])
def test_decode_equals_numpy(anneal, temperature):
    batch, tokens, codes, steps = 3, 36, 11, 8
    ids = torch.full((batch, tokens), codes)
    ids[1, torch.randperm(tokens)[:10]] = 3
    table = torch.randn(codes + 1, tokens, codes)  # logits depend on what is known

    def logits_fn(current, step, noise):
        return torch.stack([table[row, torch.arange(tokens)].roll(step, 0) * 2 for row in current])

    def logits_of(current, step):
        return logits_fn(torch.from_numpy(current), step, None).double().numpy()

    noise, seen = small.Recorded(), []
    out = decoding.parallel_decode(
        [logits_fn] * steps, ids, noise, DecodeConfig(choice_temperature=temperature, choice_anneal=anneal), codes,
        watch=seen.append,
    )  # fmt: skip
    expected = reference_decode(logits_of, ids, noise, steps, codes, temperature, anneal)
    assert np.array_equal(out.numpy(), expected)
    assert len(seen) == steps and torch.equal(seen[-1], out)
    for now, after in zip([ids, *seen], seen, strict=False):
        known = now != codes
        assert torch.equal(after[known], now[known]) and (after != codes).sum() > known.sum()


def test_without_choice_noise_the_most_confident_are_committed_first():
    tokens, codes, steps = 64, 16, 8
    sharpness = torch.rand(1, tokens) * 50 + 20  # all but certain, and each differently so
    logits = torch.zeros(1, tokens, codes)
    logits[..., 3] = sharpness.log()
    order = []

    def logits_fn(current, step, noise):
        order.append(current != codes)
        return logits

    noise = small.Recorded()
    start, config = torch.full((1, tokens), codes), DecodeConfig(choice_temperature=0.0)
    decoding.parallel_decode([logits_fn] * steps, start, noise, config, codes)
    log_probs = logits.log_softmax(-1)
    for step in range(steps - 1):
        committed = (order[step + 1] & ~order[step])[0]
        left = ~order[step + 1][0]
        sampled = (log_probs + gumbel(noise.draws[f"token{step}"])).argmax(-1)
        confidence = log_probs.gather(2, sampled[..., None])[0, :, 0]
        assert confidence[committed].min() >= confidence[left].max()


def test_the_orders_are_those_of_the_flag():
    (field,) = (field for _, _, field in config_lib.fields(DecodeConfig()) if field.name == "decode_order")
    assert field.metadata["choices"] == tuple(decoding.ORDERS)


def test_another_order_reads_numbers_of_pythons_at_every_step(monkeypatch):
    """From the last place to the first, by a table; int steps and steps that are tensors agree."""
    seen, tokens = [], 16

    def backwards(logits, sampled, noise, choice, table):
        assert logits.shape == (2, tokens, 5) and sampled.shape == (2, tokens) and choice.num_steps == 4
        seen.append(table(lambda i: [10 * i + place for place in range(tokens)]))
        return seen[-1].expand(sampled.shape)

    monkeypatch.setitem(decoding.ORDERS, "confidence", backwards)
    ids, left = torch.full((2, tokens), 9), []
    for number in (int, torch.tensor):
        run = Eager()
        run.number = number
        with running(run):
            decoding.parallel_decode([lambda ids, step, noise: torch.randn(2, tokens, 5)] * 4, ids, small.Recorded(),
                                     DecodeConfig(), 9, watch=left.append)  # fmt: skip
    assert [table[0].item() for table in seen] == [0, 10, 20, 30] * 2
    for canvas in left:
        known = (canvas[0] != 9).long()
        assert torch.equal(known, known.sort().values), "the last places come first"


def test_samples_follow_the_softmax():
    logits = torch.randn(6) * 1.5
    ids = torch.full((40, 500), 6)
    out = decoding.parallel_decode(
        [lambda current, step, noise: logits.expand(*current.shape, 6)], ids, small.Recorded(), DecodeConfig(), 6
    )
    frequency = torch.bincount(out.flatten(), minlength=6) / out.numel()
    assert (frequency - logits.softmax(0)).abs().max() < 0.02  # 5 standard deviations


def test_guidance():
    conditional, unconditional = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    assert torch.equal(decoding.guide(conditional, unconditional, 0.0), conditional)
    scale = float(torch.rand(())) * 4
    conditional, unconditional = conditional.double(), unconditional.double()  # in float32 the two terms may cancel
    expected = (1 + scale) * conditional - scale * unconditional
    torch.testing.assert_close(decoding.guide(conditional, unconditional, scale), expected)
    values = [float(decoding.ramp(2.0, "linear", step, 24, "cpu")) for step in range(24)]
    np.testing.assert_allclose(values, [2.0 * (step + 1) / 24 for step in range(24)])
    assert values[-1] == 2.0 and decoding.ramp(2.0, "constant", 0, 24, "cpu") == 2.0


# ------------------------------------------------------------------------------------------ text

BOS = 2


class Speaker:
    """Random logits of the next token after every prefix, as a step_fn for rows of samples and as a function."""

    def __init__(self, batch, vocab, scale=2.0):
        self.vocab, self.scale, self.seed = vocab, scale, int(torch.randint(2**31, ()))
        self.prefixes = [(sample,) for sample in range(batch)]
        self.calls = 0

    @functools.cache  # noqa: B019 (lives as long as the test)
    def logits(self, prefix):
        generator = torch.Generator().manual_seed(hash((self.seed, *prefix)) % 2**62)
        return torch.randn(self.vocab, generator=generator) * self.scale

    def step(self, token, position, cache):
        assert cache is self
        assert position.tolist() == [self.calls]
        self.calls += 1
        self.prefixes = [(*prefix, t) for prefix, t in zip(self.prefixes, token.tolist(), strict=True)]
        return torch.stack([self.logits(prefix) for prefix in self.prefixes])

    def repeat(self, times):
        self.prefixes = [prefix for prefix in self.prefixes for _ in range(times)]
        return self

    def reorder(self, rows):
        same = [self.prefixes[row][0] == prefix[0] for row, prefix in zip(rows.tolist(), self.prefixes, strict=True)]
        assert all(same)
        self.prefixes = [self.prefixes[row] for row in rows.tolist()]
        return self


def greedy_reference(speaker, sample, length, suppressed):
    prefix, out = (sample, BOS), []
    while len(out) < length and 1 not in out:
        logits = speaker.logits(prefix).tolist()
        out.append(max((v for v in range(speaker.vocab) if v not in suppressed), key=logits.__getitem__))
        prefix = (*prefix, out[-1])
    return out + [0] * (length - len(out))


@pytest.mark.parametrize("at_hand", [False, True])
def test_greedy_equals_python(at_hand, monkeypatch):
    """It stops when every row has ended, where the host can see that at once."""
    monkeypatch.setattr(decoding, "at_hand", lambda x: at_hand)
    lengths = set()
    for _ in range(20):
        speaker = Speaker(4, 6)
        ids = decoding.greedy_decode(
            speaker.step, speaker, 4, 7, bos_id=BOS,
            suppressed=[0, BOS], device="cpu",
        )  # fmt: skip
        expected = [greedy_reference(speaker, sample, 7, (0, BOS)) for sample in range(4)]
        assert ids.tolist() == expected
        ended = max(row.index(1) + 1 if 1 in row else 7 for row in expected)
        assert speaker.calls == (ended if at_hand else 7)
        lengths |= {row.index(1) if 1 in row else None for row in expected}
    assert None in lengths and len(lengths) > 4  # texts without EOS, and of many lengths


def beam_reference(speaker, sample, length, beams, alpha, suppressed):
    """The rule of the docstring in plain Python: the texts of one sample, best first, and their scores."""

    def penalty(num_tokens):
        return ((5 + num_tokens) / 6) ** alpha

    live, finished = [(0.0, ())], []
    for position in range(length):
        candidates = []
        for score, text in live:
            logits = speaker.logits((sample, BOS, *text)).double()
            logits[list(suppressed)] = -torch.inf
            log_probs = logits.log_softmax(0).tolist()
            candidates += [(score + log_probs[v], (*text, v)) for v in range(speaker.vocab) if v not in suppressed]
        candidates = sorted(candidates, reverse=True)[: 2 * beams]
        ends = [(score / penalty(position + 1), text) for score, text in candidates[:beams] if text[-1] == 1]
        finished = sorted(finished + ends, reverse=True)[:beams]
        if len(finished) == beams and finished[-1][0] >= candidates[0][0] / penalty(position + 1):
            break
        live = [(score, text) for score, text in candidates if text[-1] != 1][:beams]
    else:
        finished += [(score / penalty(length + 1), text) for score, text in live]
    kept = sorted(finished, reverse=True)[:beams]
    return [[*text] + [0] * (length - len(text)) for _, text in kept], [score for score, _ in kept]


def run_beam(speaker, batch, length, beams, alpha, suppressed=(0, BOS)):
    return decoding.beam_decode(
        speaker.step, Speaker.reorder, speaker.repeat(beams), batch, length, beam_size=beams, alpha=alpha, bos_id=BOS,
        suppressed=list(suppressed), device="cpu",
    )  # fmt: skip


@pytest.mark.parametrize(("beams", "vocab", "length"), [(4, 12, 6), (2, 5, 5), (3, 7, 4), (4, 5, 6)])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_beam_equals_python(beams, vocab, length, alpha):
    differs = 0
    for _ in range(8):
        speaker = Speaker(3, vocab)
        found = run_beam(speaker, 3, length, beams, alpha)
        assert found.texts.shape == (3, beams, length)
        for sample in range(3):
            texts, scores = beam_reference(speaker, sample, length, beams, alpha, (0, BOS))
            assert found.texts[sample, : len(texts)].tolist() == texts
            np.testing.assert_allclose(found.scores[sample, : len(texts)], scores, rtol=1e-5, atol=1e-5)  # float32
            assert torch.isneginf(found.scores[sample, len(texts) :]).all()
            differs += texts[0] != greedy_reference(speaker, sample, length, (0, BOS))
        assert torch.equal(decoding.best(found), found.texts[:, 0])
    assert differs or vocab == 5


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_beam_leaves_when_every_sample_is_done_and_that_can_be_seen(alpha, monkeypatch):
    saved = 0
    for _ in range(10):
        speaker, again = Speaker(3, 5), Speaker(3, 5)
        again.seed = speaker.seed
        monkeypatch.setattr(decoding, "at_hand", lambda x: False)
        whole = run_beam(speaker, 3, 12, 2, alpha)
        monkeypatch.setattr(decoding, "at_hand", lambda x: True)
        left = run_beam(again, 3, 12, 2, alpha)
        assert torch.equal(whole.texts, left.texts) and torch.equal(whole.scores, left.scores)
        saved += speaker.calls - again.calls
    assert speaker.calls == 12 and saved > 0


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_beam_of_one_equals_greedy(alpha):
    for _ in range(10):
        speaker = Speaker(4, 8)
        found = run_beam(speaker, 4, 6, 1, alpha)
        assert decoding.best(found).tolist() == [greedy_reference(speaker, i, 6, (0, BOS)) for i in range(4)]


def test_a_beam_wide_enough_finds_the_likeliest_text():
    for _ in range(5):
        speaker = Speaker(1, 5)
        texts = [()]
        whole = []
        for _ in range(3):
            texts = [(*text, v) for text in texts for v in (1, 3, 4)]
            whole += [text for text in texts if text[-1] == 1]
            texts = [text for text in texts if text[-1] != 1]

        def score(text, speaker=speaker):
            total = 0.0
            for i, token in enumerate(text):
                logits = speaker.logits((0, BOS, *text[:i])).double()
                logits[[0, BOS]] = -torch.inf
                total += float(logits.log_softmax(0)[token])
            return total

        best = list(max(whole + texts, key=score))
        assert decoding.best(run_beam(speaker, 1, 3, 16, 0.0)).tolist() == [best + [0] * (3 - len(best))]


class Mute(transformers.GPT2LMHeadModel):
    """Never says PAD or BOS. As a network, since transformers' own way does not make the rest sum up to one."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits[..., [0, BOS]] = -torch.inf
        return out


def test_beam_equals_transformers():
    """Without a length penalty the rules agree."""
    config = transformers.GPT2Config(
        vocab_size=9, n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=1.0, bos_token_id=BOS,
        eos_token_id=1, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    gpt = Mute(config).eval()
    batch, beams, length = 4, 4, 7
    starts = torch.randint(3, 9, (batch, 2))  # a prompt of each sample, so that they differ

    def step(token, position, rows):
        rows[0] = torch.cat([rows[0], token[:, None]], 1)
        with torch.no_grad():
            return gpt(rows[0]).logits[:, -1]

    def reorder(rows, order):
        return [rows[0][order]]

    found = decoding.beam_decode(
        step, reorder, [starts.repeat_interleave(beams, 0)], batch, length, beam_size=beams, alpha=0.0, bos_id=BOS,
        suppressed=[0, BOS], device="cpu",
    )  # fmt: skip
    prompt = torch.cat([starts, torch.full((batch, 1), BOS)], 1)
    expected = gpt.generate(
        prompt, attention_mask=torch.ones_like(prompt), num_beams=beams, max_new_tokens=length, length_penalty=0.0,
        do_sample=False, early_stopping=False,
    )[:, 3:]  # fmt: skip
    # What stands after the end is a matter of taste.
    cut = [row[: row.index(1) + 1] if 1 in row else row for row in expected.tolist()]
    assert decoding.best(found).tolist() == [row + [0] * (length - len(row)) for row in cut]


def test_suppressed_ids_are_never_chosen():
    logits = torch.randn(3, 5)
    logits[:, 2] = 1e6
    kept = decoding.suppress(logits, [0, 2])
    assert torch.isneginf(kept[:, [0, 2]]).all() and torch.equal(kept[:, [1, 3, 4]], logits[:, [1, 3, 4]])
    logits = torch.randn(2, 5)
    for nothing in ([], ()):
        assert torch.equal(decoding.suppress(logits, nothing), logits)
