"""What values of a resolved `Config` may be, alone and beside one another: one table, a line a rule."""


def check(config):
    """Raises ValueError naming the flag, its value and what is allowed, for the first value that does not fit."""
    m, o, d, p, t = config.model, config.objective, config.decode, config.optim, config.train
    rules = [
        (m.grid**2 == m.num_image_tokens > 0, "num_image_tokens", m.num_image_tokens, "a square number"),
        (m.num_text_tokens >= 2, "num_text_tokens", m.num_text_tokens, "at least 2 (one word and EOS)"),
        (m.embed_dim % m.num_heads == 0, "num_heads", m.num_heads, f"a divisor of embed_dim={m.embed_dim}"),
        (m.text_decoder_dim % m.text_decoder_num_heads == 0, "text_decoder_num_heads", m.text_decoder_num_heads,
         f"a divisor of text_decoder_dim={m.text_decoder_dim}"),
        (3 <= m.bos_id < m.vocab_size, "bos_id", m.bos_id,
         f"in [3, vocab_size={m.vocab_size}): 0, 1, 2 are PAD, EOS, UNK"),
        (m.text_feature_dim == config.t5.dim, "text_feature_dim", m.text_feature_dim,
         f"the width of the T5 encoder, {config.t5.dim}"),
        (config.t5.vocab_size == m.vocab_size, "t5_vocab_size", config.t5.vocab_size, f"vocab_size={m.vocab_size}"),
        (0 <= m.dropout < 1, "dropout", m.dropout, "in [0, 1)"),
        (m.image_decoder_sees_text or not m.overwrite_kept_masked, "image_decoder_sees_text", False,
         "true while overwrite_kept_masked is: a fully masked picture would reach the image decoder without any text"),
        (0 < o.mask_ratio_min <= o.mask_ratio_max_i2t <= 1, "mask_ratio_max_i2t", o.mask_ratio_max_i2t,
         f"in [mask_ratio_min={o.mask_ratio_min}, 1]"),
        (0 < o.mask_ratio_min <= o.mask_ratio_max_t2i <= 1, "mask_ratio_max_t2i", o.mask_ratio_max_t2i,
         f"in [mask_ratio_min={o.mask_ratio_min}, 1]"),
        (o.mask_ratio_std > 0, "mask_ratio_std", o.mask_ratio_std, "above 0"),
        (0 <= o.t2i_text_drop_prob <= 1, "t2i_text_drop_prob", o.t2i_text_drop_prob, "in [0, 1]"),
        (0 <= o.label_smoothing < 1, "label_smoothing", o.label_smoothing, "in [0, 1)"),
        (1 <= d.num_decode_steps <= m.num_image_tokens, "num_decode_steps", d.num_decode_steps,
         f"in [1, num_image_tokens={m.num_image_tokens}]"),
        (d.synth_decode_steps is None or 1 <= d.synth_decode_steps <= m.num_image_tokens, "synth_decode_steps",
         d.synth_decode_steps, f"in [1, num_image_tokens={m.num_image_tokens}]"),
        (d.beam_size >= 1, "beam_size", d.beam_size, "at least 1"),
        (p.num_steps >= 1, "num_steps", p.num_steps, "at least 1"),
        (0 <= p.lr_warmup_steps <= p.num_steps, "lr_warmup_steps", p.lr_warmup_steps,
         f"in [0, num_steps={p.num_steps}]"),
        (0 <= p.beta1 < 1, "beta1", p.beta1, "in [0, 1)"),
        (0 <= p.beta2 < 1, "beta2", p.beta2, "in [0, 1)"),
        (0 <= p.ema_decay < 1, "ema_decay", p.ema_decay, "in [0, 1)"),
        (p.skip_spikes == 0 or p.skip_spikes > 1, "skip_spikes", p.skip_spikes, "above 1, or 0"),
        (p.max_skipped >= 1, "max_skipped", p.max_skipped, "at least 1"),
        (p.num_microbatches >= 1, "num_microbatches", p.num_microbatches, "at least 1"),
        (t.sample_every >= 0, "sample_every", t.sample_every, "at least 0"),
        (t.eval_every >= 0, "eval_every", t.eval_every, "at least 0"),
        (t.num_eval >= 1, "num_eval", t.num_eval, "at least 1"),
        (t.eval_every > 0 or not t.keep_best, "eval_every", t.eval_every, f"above 0 for keep_best={t.keep_best}"),
        (bool(config.data.vocabulary) or t.keep_best != "CIDEr", "keep_best", t.keep_best,
         "t2i or i2t without a vocabulary, which CIDEr needs"),
        (t.eval_scenes or not t.keep_best.endswith("_exact"), "keep_best", t.keep_best,
         "one of the others without --eval_scenes, which counts what is exact"),
        (not t.eval_scenes or bool(config.data.vocabulary and config.data.vqgan), "eval_scenes", t.eval_scenes,
         "false without --vocabulary and --vqgan, which read captions and pictures"),
        (t.stop_after_steps >= 0, "stop_after_steps", t.stop_after_steps, "at least 0"),
        (t.mesh_data >= 0, "mesh_data", t.mesh_data, "at least 0"),
        (t.mesh_fsdp >= 0, "mesh_fsdp", t.mesh_fsdp, "at least 0"),
        (t.log_every >= 1, "log_every", t.log_every, "at least 1"),
        (t.checkpoint_every >= 1, "checkpoint_every", t.checkpoint_every, "at least 1"),
        (t.keep_last >= 1, "keep_last", t.keep_last, "at least 1"),
        (t.keep_every >= 0 and t.keep_every % t.checkpoint_every == 0, "keep_every", t.keep_every,
         f"a multiple of checkpoint_every={t.checkpoint_every}, or 0"),
        (t.watchdog_factor == 0 or t.watchdog_factor > 1, "watchdog_factor", t.watchdog_factor, "above 1, or 0"),
        (t.watchdog_seconds > 0, "watchdog_seconds", t.watchdog_seconds, "above 0"),
        (t.num_samples >= 1, "num_samples", t.num_samples, "at least 1"),
        (config.data.max_bad_records >= 0, "max_bad_records", config.data.max_bad_records, "at least 0"),
        (config.data.prefetch >= 1, "prefetch", config.data.prefetch, "at least 1"),
        (config.data.block_bytes >= 1, "block_bytes", config.data.block_bytes, "at least 1"),
        (config.data.shuffle_blocks >= 1, "shuffle_blocks", config.data.shuffle_blocks, "at least 1"),
        (config.data.read_ahead_mib >= 0, "read_ahead_mib", config.data.read_ahead_mib, "at least 0"),
        (config.data.read_requests >= 1, "read_requests", config.data.read_requests, "at least 1"),
        (config.data.num_workers >= -1, "num_workers", config.data.num_workers, "at least -1"),
    ]  # fmt: skip
    batches = {name: getattr(o, name) for name in
               ("t2i_batch", "i2t_batch", "t2i2t_batch", "i2t2i_batch", "t2t_batch", "i2i_batch")}  # fmt: skip
    for name, size in batches.items():
        rules.append((size >= 0 and size % p.num_microbatches == 0, name, size,
                      f"a multiple of num_microbatches={p.num_microbatches}, or 0"))  # fmt: skip
    rules.append((any(batches.values()), "t2i_batch", 0, "above 0 for at least one task"))
    for cycle in ("t2i2t", "i2t2i"):
        on, size = getattr(o, cycle) != "off", batches[cycle + "_batch"]
        rules.append((on == (size > 0), cycle, getattr(o, cycle),
                      f"'off' exactly where {cycle}_batch is 0, and that is {size}"))  # fmt: skip
    for good, name, value, allowed in rules:
        if not good:
            raise ValueError(f"--{name}={value}: must be {allowed}")
