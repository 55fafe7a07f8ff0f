"""What the tests of the reports share: a translator whose answers are known, a very small run as training leaves it.

Shapes: B batch, N image tokens, L text tokens, S side of a picture in pixels.
"""

import io

import numpy as np
import sentencepiece
import torch
from PIL import Image

from itit import flags, samples
from itit.backends.local import Local
from itit.checkpoint import store, weightsdir
from itit.config import VqganConfig
from itit.data import scenes
from itit.data.records import RecordWriter, encode_example
from itit.models import VQGAN
from itit.training.metrics import Metrics
from itit.training.state import frozen, make_state, vocabulary_of
from tests.helpers import small
from tools import train_sentencepiece

STEP, NUM_TEXT_TOKENS = 7, 64
VQGAN_SIZES = VqganConfig(image_size=64, patch_size=4, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1,
                          latent_dim=4, codebook_size=40)  # fmt: skip


class Known(samples.Translator):
    """Ids are places in the lists `texts` and `shown`; caption i of picture i, picture i of text i.

    Args:
      texts: list of str; `words` reads it.
      shown: uint8 [B, S, S, 3].
    """

    def __init__(self, texts, shown):
        self.texts, self.shown, self.names = texts, shown, []

    def words(self, ids):
        return [self.texts[i] for i in ids[:, 0].tolist()]

    def captions(self, image_ids):
        return image_ids % len(self.texts)

    def pictures(self, text_ids, name="prompt", rows=None):
        self.names.append(name)
        return text_ids

    def pixels(self, image_ids):
        return self.shown[image_ids[:, 0].numpy()]


def write_pairs(folder, pairs, model):
    """test.tfrecord: pictures, uint8 [S, S, 3], with the ready ids of their texts."""
    with RecordWriter(str(folder / "test.tfrecord")) as writer:
        for picture, text in pairs:
            data, ids = io.BytesIO(), np.zeros(NUM_TEXT_TOKENS, np.int64)
            Image.fromarray(picture).save(data, "PNG")
            words = model.encode(text)
            ids[: len(words) + 1] = [*words, 1]
            writer.write(encode_example({"image": data.getvalue(), "text_ids": ids}))


def finish(folder, pairs, vocab_size):
    """Writes a run of random weights: resolved.cfg, a checkpoint, curves, vocabulary, image tokenizer and test pairs.

    Returns:
      Its Config, and the tensors saved.
    """
    (folder / "run").mkdir()
    vocabulary = train_sentencepiece.train([text for _, text in pairs] * 5, vocab_size)
    (folder / "words.model").write_bytes(vocabulary)
    write_pairs(folder, pairs, sentencepiece.SentencePieceProcessor(model_proto=vocabulary))
    weightsdir.save(str(folder / "vqgan"), VQGAN(VQGAN_SIZES).state_dict(), VQGAN_SIZES)
    config = small.small(
        workdir=str(folder / "run"), paired_data=str(folder / "test.tfrecord"), vqgan=str(folder / "vqgan"),
        vocabulary=str(folder / "words.model"), image_size=64, vocab_size=128, bos_id=127, ema_decay=0.9, beam_size=2,
        num_text_tokens=NUM_TEXT_TOKENS, num_decode_steps=2, compute_dtype="fp32", t2i_batch=2, i2t_batch=2,
        t2i2t_batch=0, t2i2t="off", i2t2i_batch=0, i2t2i="off", t2t_batch=0, i2i_batch=0,
    )  # fmt: skip
    (folder / "run" / "resolved.cfg").write_text(flags.to_flagfile(config))
    state = make_state(config, Local("cpu"))
    small.stir(state.model)
    tensors = state.tensors()
    tensors = {name: torch.randn_like(t) * 0.1 if name.startswith("ema/") else t for name, t in tensors.items()}
    store.save(config.train.workdir, STEP, store.whole(tensors), {"frozen": frozen(state) | vocabulary_of(config)}, 1)
    with Metrics(config.train.workdir, 10) as metrics:
        metrics.scalars(1, {"loss/t2i": 2.0})
    return config, tensors


def of_scenes(folder):
    """`finish` of 24 Scenes: (its Config, the pairs of picture, uint8 [64, 64, 3], and text)."""
    rng = np.random.default_rng()
    drawn = [scenes.sample(rng, ("seen",)) for _ in range(24)]
    pairs = [(scenes.render(scene, rng), scenes.describe(scene, rng)) for scene in drawn]
    return finish(folder, pairs, 100)[0], pairs


def same_weights(model, tensors, kind):
    """Whether the model holds the tensors that were saved under `kind`/."""
    return all(torch.equal(p, tensors[f"{kind}/{name}"]) for name, p in model.named_parameters())
