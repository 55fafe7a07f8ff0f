"""How much arithmetic a training step of ITIT needs, by part, from its Config alone.

Model FLOPs: two for each multiplication of a matrix product or convolution that the method asks for. Attention counts
in full (masks skip nothing), element-wise work counts nothing, and what a backend does besides (recomputation, lookups
as products with one-hot matrices) does not count either. A trained pass is its forward products, and in the backward
pass as many again for the weights and for whatever inputs carry a gradient.

Shapes: B batch, N image tokens, K kept image tokens, L text tokens, S other slots, D width, F width of the text
features, C codebook, V vocabulary.
"""

from itit.masking import decode_schedule, num_dropped
from itit.models.vqgan import num_middle_blocks
from itit.tasks import TASKS
from tools.parts import I2T2I, LOSS_OF, MIDDLE, PARTS, SYNTHESIS, T2I2T, T5, VQGAN

PICTURES = [name for name, task in TASKS.items() if task.has_picture]
T2I, I2T, T2T, I2I = (LOSS_OF[task] for task in ("t2i", "i2t", "t2t", "i2i"))


def step_flops(config, active, vqgan=None):
    """FLOPs of one training step: part -> number; parts that a step does not have are left out.

    Args:
      config: a resolved Config.
      active: task -> samples (see `train_step.tasks`).
      vqgan: VqganConfig where pictures are tokenized in the step, None where codes are ready.
    """
    found = {name: active[task] * flops for task, parts in _tasks(config).items() if task in active
             for name, flops in parts.items()}  # fmt: skip
    texts = sum(active.get(task, 0) for task, row in TASKS.items() if row.features)
    pictures = sum(active.get(task, 0) for task in PICTURES) if vqgan else 0
    found |= {T5: texts * t5_forward(config.t5, config.model.num_text_tokens)} if texts else {}
    found |= {VQGAN: pictures * vqgan_encode(vqgan)} if pictures else {}
    return {part: found[part] for part in PARTS if part in found}


def _tasks(config):
    """FLOPs of one sample: task -> part -> number, T5 of given texts and the image tokenizer left out."""
    m, o = config.model, config.objective
    kept = m.num_image_tokens - num_dropped(m.num_image_tokens, o.mask_ratio_min)
    # Text features are given, without gradient into them, but for the empty text where it is learned.
    from_text, learned = 3 * encode(m, kept) - text_in(m), m.empty_text == "learned"
    from_empty = from_text + learned * text_in(m)

    def trained(first):
        """What the first pass of a full cycle takes where it has a gradient, else None."""
        return None if o.cycle_stop_gradient else first

    image = 3 * decode_image(m, kept) + _trained_logits(m, m.num_image_tokens, 3)
    caption = 3 * (decode_text(m, memory_tokens(m, kept)) + text_logits(m))
    return {
        "t2i": {T2I: (from_empty if o.t2i_text_drop_prob else from_text) + image},
        "i2t": {I2T: from_empty + caption + (image if o.i2t_i2i_weight else 0)},
        "t2i2t": {
            T2I2T + SYNTHESIS: synthesize_image(config),
            **_if(o.t2i2t, o, T2I2T + MIDDLE, lambda times: _middle_image(m, kept, times, trained(from_text))),
            LOSS_OF["t2i2t"]: from_empty + caption,
        },
        "i2t2i": {
            I2T2I + SYNTHESIS: synthesize_text(m),
            **_if(o.i2t2i, o, I2T2I + MIDDLE, lambda times: _middle_text(config, kept, times, trained(from_empty))),
            LOSS_OF["i2t2i"]: _final_t5(config) + from_text + (o.i2t2i == "full") * text_in(m) + image,
        },
        "t2t": {T2T: 3 * (decode_text(m, 0) + text_logits(m))},
        "i2i": {I2I: from_empty + image},
    }


def _if(cycle, objective, part, middle):
    """The middle pass of a cycle: trained, forward alone where the gradient is stopped after it, or not there."""
    if cycle == "full":
        return {part: middle(3)}
    return {part: middle(1)} if objective.half_cycle == "stop_gradient" else {}


def _middle_image(m, kept, times, first):
    """First encoder pass (without gradient, or `first`), image decoder, soft tokens."""
    flops = encode(m, kept) + times * decode_image(m, kept) + _trained_logits(m, kept, times)
    if times == 1:
        return flops
    flops += code_product(m, kept)  # the gradient of the soft tokens passes the code table
    if first is not None:
        return flops - encode(m, kept) + first
    return flops - memory_in(m, _embedded(m, kept), m.embed_dim)  # the encoded tokens carry no gradient


def _middle_text(config, kept, times, first):
    """First encoder pass (without gradient, or `first`), text decoder, soft tokens of T5's table."""
    m = config.model
    memory = memory_tokens(m, kept)
    flops = encode(m, kept) + times * (decode_text(m, memory) + text_logits(m))
    if times == 1:
        return flops
    flops += 2 * m.num_text_tokens * m.vocab_size * config.t5.dim
    if first is not None:
        return flops - encode(m, kept) + first
    return flops - memory_in(m, memory, m.text_decoder_dim)


def _final_t5(config):
    """T5 of the soft tokens, with the gradient into them in a full cycle; its weights are frozen."""
    length = config.model.num_text_tokens
    forward = t5_forward(config.t5, length)
    backward = forward + t5_attention(config.t5, length) if config.objective.i2t2i == "full" else 0
    return forward + backward


# ---------------------------------------------------------------------------------------------- synthesis


def synthesize_image(config):
    """Guided parallel decoding of one sample's image tokens, as `inference.generate`."""
    m, d = config.model, config.decode
    num_steps = d.synth_decode_steps or d.num_decode_steps
    dropped = num_dropped(m.num_image_tokens, config.objective.mask_ratio_min) if d.synth_drop_masked else 0
    rows = 2 if d.synth_cfg else 1
    kept = [m.num_image_tokens - (dropped if dropped <= masked else 0)
            for masked in decode_schedule(m.num_image_tokens, num_steps)]  # fmt: skip
    each = [encode(m, k) + decode_image(m, k) + image_features(m, m.num_image_tokens) for k in kept]
    return rows * sum(each) + num_steps * code_product(m, m.num_image_tokens)  # of the guided features alone


def synthesize_text(m):
    """Greedy decoding of one sample's text from all its image tokens, with a cache of keys and values of fixed size."""
    memory = memory_tokens(m, m.num_image_tokens)
    start = memory_in(m, memory, m.text_decoder_dim) + m.text_decoder_depth * _text_block(m, memory, memory)
    token = m.text_decoder_depth * _text_block(m, 1, memory + m.num_text_tokens) + 2 * m.vocab_size * m.text_decoder_dim
    return encode(m, m.num_image_tokens) + start + m.num_text_tokens * token


# ---------------------------------------------------------------------------------------------- forward, a sample


def _block(tokens, keys, dim, mlp_ratio):
    """A transformer block: products with weights, then scores and sums over the keys."""
    return 2 * tokens * dim * (4 * dim + 2 * int(dim * mlp_ratio)) + 4 * tokens * keys * dim


def _text_block(m, tokens, keys):
    return _block(tokens, keys, m.text_decoder_dim, m.mlp_ratio)


def other_slots(m):
    return m.num_text_tokens + m.class_token


def text_in(m):
    """The projection of the text features."""
    return 2 * m.num_text_tokens * m.text_feature_dim * m.embed_dim


def encode(m, kept):
    tokens = kept + other_slots(m)
    return text_in(m) + m.depth * _block(tokens, tokens, m.embed_dim, m.mlp_ratio)


def _embedded(m, kept):
    """Encoded slots that enter the image decoder."""
    return kept + (other_slots(m) if m.image_decoder_sees_text else 0)


def decode_image(m, kept):
    tokens = m.num_image_tokens + (other_slots(m) if m.image_decoder_sees_text else 0)
    blocks = m.image_decoder_depth * _block(tokens, tokens, m.embed_dim, m.mlp_ratio)
    return memory_in(m, _embedded(m, kept), m.embed_dim) + blocks


def image_logits(m, tokens):
    return image_features(m, tokens) + code_product(m, tokens)


def image_features(m, tokens):
    return 2 * tokens * m.embed_dim**2


def code_product(m, tokens):
    """A product with the code table."""
    return 2 * tokens * m.embed_dim * m.codebook_size


def _trained_logits(m, tokens, times):
    """Forward and backward; the gradient of the tied table may be cut."""
    return times * image_logits(m, tokens) - (code_product(m, tokens) if times == 3 and m.detach_tied_table else 0)


def memory_in(m, tokens, width):
    """The first layer of a decoder, from the encoder's width to its own."""
    return 2 * tokens * m.embed_dim * width


def memory_tokens(m, kept):
    return kept + (other_slots(m) if m.text_memory == "all" else 0)


def decode_text(m, memory):
    tokens = memory + m.num_text_tokens
    return memory_in(m, memory, m.text_decoder_dim) + m.text_decoder_depth * _text_block(m, tokens, tokens)


def text_logits(m):
    return 2 * m.num_text_tokens * m.vocab_size * m.text_decoder_dim


def t5_attention(t5, length):
    """Scores and sums of all blocks, for which a backward pass takes twice the forward."""
    return t5.num_layers * 4 * length * length * t5.num_heads * t5.head_dim


def t5_forward(t5, length):
    weights = t5.dim * (4 * t5.num_heads * t5.head_dim + 3 * t5.ff_dim)
    return t5.num_layers * 2 * length * weights + t5_attention(t5, length)


def vqgan_encode(v):
    """The image tokenizer's encoder and its search for the nearest codes, as `models/vqgan.py`."""
    area, taming = 1 if v.local_encoder else 9, v.family == "taming"
    side, width = v.image_size // v.patch_size, v.channels
    flops = 2 * side**2 * area * 3 * v.patch_size**2 * width
    for level, multiplier in enumerate(v.channel_multipliers):
        if level:
            side //= 2
            flops += 2 * side**2 * 9 * width**2 if taming else 0
        for _ in range(v.num_res_blocks):
            flops += _res_block(side, width, v.channels * multiplier, area, v.family == "maskgit")
            width = v.channels * multiplier
            flops += _picture_attention(side, width) if level in v.attention_levels else 0
    flops += num_middle_blocks(v) * _res_block(side, width, width, area)
    flops += _picture_attention(side, width) if v.middle_attention else 0
    out = 9 * width * v.bottleneck_dim + v.bottleneck_dim * v.latent_dim if taming else width * v.latent_dim
    return flops + 2 * side**2 * (out + v.latent_dim * v.codebook_size)


def _res_block(side, before, after, area, shortcut_of_branch=False):
    shortcut = (after if shortcut_of_branch else before) * after if before != after else 0
    return 2 * side**2 * (area * (before * after + after * after) + shortcut)


def _picture_attention(side, width):
    return 2 * side**2 * width * (4 * width + 2 * side**2)
