"""What values of a resolved `Config` may be: ranges, alone, and a table of rules, beside one another."""

import re

from itit.tasks import CYCLES, LOSSES, TASKS, WHOLE_BATCH, batches

# Range -> the flags that it holds for, those of the image tokenizer included. A bracket includes its end, a parenthesis
# does not. NaN is in none. Ends are far from what anybody needs: what lies beyond is a slip, or ends in a stack trace.
RANGES = {
    "[1, 65536]": "embed_dim text_decoder_dim text_feature_dim num_image_tokens t5_dim t5_head_dim t5_ff_dim "
                  "num_decode_steps synth_decode_steps image_size channels latent_dim bottleneck_dim",
    "[1, 4096]": "num_heads text_decoder_num_heads t5_num_heads beam_size",
    "[0, 1024]": "depth",  # without blocks the embeddings are what is encoded
    "[1, 1024]": "image_decoder_depth text_decoder_depth t5_num_layers prefetch read_requests patch_size "
                 "num_res_blocks channel_multipliers",
    "[0, 65536]": "norm_groups attention_levels",
    "[2, 65536]": "num_text_tokens t5_max_distance",  # one word and EOS
    "[1, 16777216]": "codebook_size",
    "[4, 16777216]": "vocab_size t5_vocab_size",
    "[3, 16777216)": "bos_id",  # 0, 1, 2 are PAD, EOS, UNK
    "[4, 65536]": "t5_num_buckets",
    "[0, 10000000]": " ".join(f"{task}_batch" for task in TASKS),
    "[1, 1000000]": "num_microbatches shuffle_blocks num_samples",
    "[1, 1000000000000]": "num_steps max_skipped log_every checkpoint_every keep_last num_eval max_image_pixels "
                          "block_bytes",
    "[0, 1000000000000]": "lr_warmup_steps sample_every eval_every keep_every stop_after_steps max_bad_records "
                          + " ".join(f"{cycle}_warmup_steps" for cycle in CYCLES),
    "[-1, 1000000000000]": "profile_step",
    "[-1, 1024]": "num_workers",
    "[0, 9223372036854775807]": "seed t5_seed",
    "[0.01, 100]": "mlp_ratio",
    "[0, 1)": "dropout label_smoothing beta1 beta2 ema_decay",
    "[0, 1]": "t2i_text_drop_prob mask_ratio_mode",
    "(0, 1]": "mask_ratio_max_t2i mask_ratio_max_i2t",
    "(0, 1)": "mask_ratio_min",
    "[0.001, 1000]": "mask_ratio_std",
    "[0, 1000]": "text_grad_scale gumbel_strength i2t2i_gumbel_strength "
                 + " ".join(f"{loss}_weight" for loss in LOSSES),
    "[0, 1000000]": "choice_temperature grad_clip update_clip mesh_data mesh_fsdp read_ahead_mib",
    "[-1, 1000]": "guidance_scale",  # at -1 nothing of the text is left
    "[-100, 100]": "length_penalty",
    "[0, 10]": "learning_rate weight_decay",
    "(1, 1000000], or 0": "skip_spikes watchdog_factor",
    "(0, 1000000000]": "watchdog_seconds",
    "[-1000, 1000]": "pixel_low pixel_high",
}  # fmt: skip
_RANGE_OF = {name: text for text, names in RANGES.items() for name in names.split()}
_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])(, or 0)?")


def check_ranges(values):
    """Raises ValueError naming the flag, its value and its range, for the first value outside.

    Args:
      values: name of a flag -> number, tuple of numbers or None; names that have no range, and None, are passed over.
    """
    for name, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if name in _RANGE_OF and number is not None and not _inside(number, _RANGE_OF[name]):
                raise ValueError(f"--{name}={value}: must be in {_RANGE_OF[name]}")


def _inside(number, text):
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    left, low, high, right, zero = _INTERVAL.fullmatch(text).groups()
    low, high = (float(end) if "." in end else int(end) for end in (low, high))
    above = number > low or left == "[" and number == low
    below = number < high or right == "]" and number == high
    return above and below or bool(zero) and number == 0


def check(config):
    """Raises ValueError naming the flag, its value and what is allowed, for the first value that does not fit the
    others. Each is in its range."""
    m, o, d, p, t = config.model, config.objective, config.decode, config.optim, config.train
    rules = [
        (m.grid**2 == m.num_image_tokens, "num_image_tokens", m.num_image_tokens, "a square number"),
        (m.embed_dim % m.num_heads == 0, "num_heads", m.num_heads, f"a divisor of embed_dim={m.embed_dim}"),
        (m.text_decoder_dim % m.text_decoder_num_heads == 0, "text_decoder_num_heads", m.text_decoder_num_heads,
         f"a divisor of text_decoder_dim={m.text_decoder_dim}"),
        (m.bos_id < m.vocab_size, "bos_id", m.bos_id, f"in [3, vocab_size={m.vocab_size}): 0, 1, 2 are PAD, EOS, UNK"),
        (m.text_feature_dim == config.t5.dim, "text_feature_dim", m.text_feature_dim,
         f"the width of the text encoder, {config.t5.dim}"),
        (config.t5.vocab_size == m.vocab_size, "t5_vocab_size", config.t5.vocab_size, f"vocab_size={m.vocab_size}"),
        (m.image_decoder_sees_text or not m.overwrite_kept_masked, "image_decoder_sees_text", False,
         "true while overwrite_kept_masked is: a fully masked picture would reach the image decoder without any text"),
        (o.mask_ratio_min <= o.mask_ratio_max_i2t, "mask_ratio_max_i2t", o.mask_ratio_max_i2t,
         f"in [mask_ratio_min={o.mask_ratio_min}, 1]"),
        (o.mask_ratio_min <= o.mask_ratio_max_t2i, "mask_ratio_max_t2i", o.mask_ratio_max_t2i,
         f"in [mask_ratio_min={o.mask_ratio_min}, 1]"),
        (d.num_decode_steps <= m.num_image_tokens, "num_decode_steps", d.num_decode_steps,
         f"in [1, num_image_tokens={m.num_image_tokens}]"),
        (d.synth_decode_steps is None or d.synth_decode_steps <= m.num_image_tokens, "synth_decode_steps",
         d.synth_decode_steps, f"in [1, num_image_tokens={m.num_image_tokens}]"),
        (2 * d.beam_size <= m.vocab_size, "beam_size", d.beam_size, f"at most half of vocab_size={m.vocab_size}"),
        (config.t5.max_distance > config.t5.num_buckets // 4, "t5_max_distance", config.t5.max_distance,
         f"above a quarter of t5_num_buckets={config.t5.num_buckets}"),
        (p.lr_warmup_steps <= p.num_steps, "lr_warmup_steps", p.lr_warmup_steps,
         f"in [0, num_steps={p.num_steps}]"),
        (t.eval_every > 0 or not t.keep_best, "eval_every", t.eval_every, f"above 0 for keep_best={t.keep_best}"),
        (bool(config.data.vocabulary) or t.keep_best != "CIDEr", "keep_best", t.keep_best,
         "t2i or i2t without a vocabulary, which CIDEr needs"),
        (t.eval_scenes or not t.keep_best.endswith("_exact"), "keep_best", t.keep_best,
         "one of the others without --eval_scenes, which counts what is exact"),
        (not t.eval_scenes or bool(config.data.vocabulary and config.data.vqgan), "eval_scenes", t.eval_scenes,
         "false without --vocabulary and --vqgan, which read captions and pictures"),
        (t.keep_every % t.checkpoint_every == 0, "keep_every", t.keep_every,
         f"a multiple of checkpoint_every={t.checkpoint_every}, or 0"),
    ]  # fmt: skip
    sizes = batches(o)
    for task, size in sizes.items():
        rules.append((size % p.num_microbatches == 0, f"{task}_batch", size,
                      f"a multiple of num_microbatches={p.num_microbatches}, or 0"))  # fmt: skip
        splits = size == 0 or all(loss.mean_of != WHOLE_BATCH for loss in TASKS[task].losses.values())
        rules.append((splits or p.num_microbatches == 1, "num_microbatches", p.num_microbatches,
                      f"1 while {task}_batch is above 0: its loss is of the whole batch"))  # fmt: skip
    rules.append((any(sizes.values()), f"{next(iter(sizes))}_batch", 0, "above 0 for at least one task"))
    for cycle in CYCLES:
        on, size = getattr(o, cycle) != "off", sizes[cycle]
        rules.append((on == (size > 0), cycle, getattr(o, cycle),
                      f"'off' exactly where {cycle}_batch is 0, and that is {size}"))  # fmt: skip
    for good, name, value, allowed in rules:
        if not good:
            raise ValueError(f"--{name}={value}: must be {allowed}")


def check_batches(sizes, num_devices, num_parts=1):
    """Raises ValueError naming the first task whose rows a mesh cannot split evenly. `sizes`: task -> rows."""
    for task, rows in sizes.items():
        if rows % (num_devices * num_parts):
            parts = f" in {num_parts} microbatches" if num_parts > 1 else ""
            raise ValueError(f"--{task}_batch={rows}: must be a multiple of {num_devices} devices{parts}")
