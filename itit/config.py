"""Every setting of ITIT, once: name, default, help and allowed values. Standard library only.

What values may be is in `checks.py`, the sizes behind a preset's name in `presets.py`, the tasks in `tasks.py`.

Sections are frozen dataclasses. `flags.py` turns each field into a flag of the same name (fields of a section with a
`prefix` get it in front), so that a setting is declared here and nowhere else. Sources: P is the ITIT paper
(arXiv:2310.03734); "unstated" marks a choice that the paper leaves open.

`None` means "from the files, else as usual" (training/taken.py reads them), or "from the preset"; `Config.resolve()`
fills it in and checks everything.
"""

import dataclasses
import difflib
import json
import math
import typing

from itit.checks import check, check_ranges
from itit.presets import MODEL_PRESETS, T5_PRESETS, USUAL
from itit.tasks import CYCLES, LOSSES, TASKS
from itit.text_encoders import FAMILIES
from itit.untrusted import parse_json, shown


def knob(default, help, choices=None):
    """A dataclass field with a help text and, optionally, its allowed values."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def section(cls, prefix=""):
    return dataclasses.field(default_factory=cls, metadata={"prefix": prefix})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The joint encoder and its two decoders (P sec. 3.1 and 7)."""

    preset: str = knob("B", "Widths and depths.", tuple(MODEL_PRESETS))
    embed_dim: int | None = knob(None, "Width of the encoder and of the image decoder.")
    depth: int | None = knob(None, "Encoder blocks.")
    num_heads: int | None = knob(None, "Attention heads of the encoder and the image decoder.")
    image_decoder_depth: int | None = knob(None, "Image decoder blocks.")
    text_decoder_dim: int | None = knob(None, "Text decoder width.")
    text_decoder_depth: int | None = knob(None, "Text decoder blocks.")
    text_decoder_num_heads: int | None = knob(None, "Text decoder attention heads.")
    mlp_ratio: float = knob(4.0, "Hidden width of the MLPs over the width of their block.")
    dropout: float = knob(0.1, "Dropout on embeddings, attention and MLPs (P table 3).")
    num_image_tokens: int | None = knob(None, "Image tokens, a square number; by default those of --vqgan or of ready "
                                        "ids, else 256.")  # fmt: skip
    num_text_tokens: int | None = knob(None, "Text tokens with EOS; shorter texts are padded, longer ones cut; by "
                                       "default those of ready ids, else 64.")  # fmt: skip
    codebook_size: int | None = knob(None, "Codes of the image tokenizer; by default those of --vqgan, else 8192.")
    vocab_size: int | None = knob(None, "Rows of the text vocabulary; by default those of --t5_weights, else the "
                                  "pieces of --vocabulary and up to 64 more, else T5's 32128.")  # fmt: skip
    text_feature_dim: int | None = knob(None, "Width of the T5 features; by default that of the chosen T5.")
    bos_id: int | None = knob(None, "First input of the text decoder; a row that is no piece of the vocabulary, by "
                              "default the last one (unstated).")  # fmt: skip
    class_token: bool = knob(False, "Add MAGE's class token to the encoder (unstated).")
    text_positions: bool = knob(True, "Learned positions for text slots in the encoder (unstated).")
    text_key_mask: bool = knob(False, "Hide PAD text slots from attention in encoder and image decoder (unstated).")
    empty_text: str = knob("t5", "The empty text: T5 of the empty string, zeros, or a learned row (unstated).",
                           ("t5", "zeros", "learned"))  # fmt: skip
    text_memory: str = knob("visible", "What the text decoder sees: visible image slots, kept ones ([MASK] included), "
                            "or all slots with the text's (unstated).", ("visible", "kept", "all"))  # fmt: skip
    text_decoder_norm: str = knob("pre", "LayerNorm before (pre) or after (post, as GIT) the branches.",
                                  ("pre", "post"))  # fmt: skip
    image_decoder_sees_text: bool = knob(True, "Append the encoded text slots to the image decoder (unstated).")
    overwrite_kept_masked: bool = knob(True, "Replace kept [MASK] slots, too, by the decoder's mask vector (unstated).")
    detach_tied_table: bool = knob(False, "No gradient into the code table from the image head, as MAGE (unstated).")

    @property
    def grid(self):
        return math.isqrt(self.num_image_tokens)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The frozen text encoder. Sizes are read from the weights' folder where one is given."""

    family: str = knob("t5", "Kind of encoder (see text_encoders.py).", tuple(FAMILIES))
    size: str = knob("xxl", "Size of the encoder.", tuple(T5_PRESETS))
    dim: int | None = knob(None, "Width (d_model).")
    head_dim: int | None = knob(None, "Width of a head (d_kv).")
    ff_dim: int | None = knob(None, "Hidden width of the gated MLP (d_ff).")
    num_layers: int | None = knob(None, "Blocks.")
    num_heads: int | None = knob(None, "Heads.")
    weights: str = knob("", "Folder with config.json and model.safetensors; empty: random ones from t5_seed.")
    seed: int = knob(0, "Seed of the random weights.")
    vocab_size: int | None = knob(None, "Rows of the vocabulary; by default vocab_size.")
    num_buckets: int = knob(32, "Relative position buckets.")
    max_distance: int = knob(128, "Relative positions beyond this share a bucket.")


@dataclasses.dataclass(frozen=True)
class VqganConfig:
    """The image tokenizer (MaskGIT's by default: CNN without attention). Kept beside its weights.

    A token covers patch_size * 2 ** (levels - 1) pixels each way.
    """

    image_size: int = knob(256, "Side of the pictures in pixels.")
    patch_size: int = knob(1, "Side in pixels of the squares that the first layer takes in and the last draws whole.")
    local_encoder: bool = knob(False, "Each token tells of its own square of pixels alone; for simple pictures.")
    local_decoder: bool = knob(False, "Each token draws its own square of pixels alone; for simple pictures.")
    family: str = knob("plain", "plain; maskgit: shortcuts that change the width act on the branch; taming: strided "
                       "convolutions, 1x1 ones around the codes.", ("plain", "maskgit", "taming"))  # fmt: skip
    attention_levels: tuple[int, ...] = knob((), "Levels, from 0, with attention after each residual block.")
    middle_attention: bool = knob(False, "Attention after the first block of the middle.")
    bottleneck_dim: int = knob(256, "Family taming: channels between the networks and the 1x1 convolutions.")
    norm_groups: int = knob(0, "Groups of each norm; 0: 32, fewer in narrow layers.")
    channels: int = knob(128, "Filters of the first level.")
    channel_multipliers: tuple[int, ...] = knob((1, 1, 2, 2, 4), "Filters of each level over `channels`.")
    num_res_blocks: int = knob(2, "Residual blocks a level.")
    latent_dim: int = knob(256, "Width of a code.")
    codebook_size: int = knob(8192, "Codes.")
    pixel_low: float = knob(0.0, "Value of black in the network; it trains fastest with common pixels near 0.")
    pixel_high: float = knob(1.0, "Value of white; 0, with -2 for black, for pictures on white.")

    @property
    def factor(self):
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self):
        return self.image_size // self.factor


def _of_tasks():
    """The settings that the table of tasks makes: (name, type, field) each."""
    cycles = {name: TASKS[name].cycle for name in CYCLES}
    for name, task in TASKS.items():
        yield f"{name}_batch", int, knob(task.batch, task.about)
    for name, cycle in cycles.items():
        yield name, str, knob("full", f"{cycle.capitalize()}.", ("off", "half", "full"))
    for name, loss in LOSSES.items():
        yield f"{name}_weight", float, knob(1.0, f"Weight of {loss.about}.")
    for name, cycle in cycles.items():
        yield f"{name}_warmup_steps", int, knob(25_000, f"Steps before the {cycle} joins (P table 5: 0 or 25K).")


TaskSettings = dataclasses.make_dataclass("TaskSettings", _of_tasks(), frozen=True)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(TaskSettings):
    """What is trained on what (P sec. 3 and 7, tables 2, 3, 5). A task with batch size 0 is off.

    --TASK_batch, --LOSS_weight, and of a cycle --TASK and --TASK_warmup_steps, come from the table in `tasks.py`.
    """

    half_cycle: str = knob("pseudo_pair", "Half cycle: train on the synthesized pair, or run the full cycle with the "
                           "gradient stopped at the argmax (unstated).", ("pseudo_pair", "stop_gradient"))  # fmt: skip
    text_grad_scale: float = knob(0.1, "Scale of the gradient from the text decoder into the encoder (P sec. 7).")
    label_smoothing: float = knob(0.1, "Label smoothing of every loss (P table 3).")
    image_loss_mean: str = knob("global", "Average the image loss over the masked tokens of the batch, or of each "
                                "sample first (unstated).", ("global", "sample"))  # fmt: skip
    t2i_text_drop_prob: float = knob(0.0, "Share of text-to-image samples trained with the empty text (Muse: 0.1).")
    mask_ratio_min: float = knob(0.5, "Least masking ratio; this share of the tokens is dropped (P table 3).")
    mask_ratio_max_t2i: float = knob(1.0, "Largest masking ratio of text-to-image (P table 3).")
    mask_ratio_max_i2t: float = knob(0.75, "Largest masking ratio of image-to-text (P table 3).")
    mask_ratio_mode: float = knob(0.75, "Mode of the truncated normal law of the ratio (P table 3).")
    mask_ratio_std: float = knob(0.25, "Its standard deviation (P table 3).")
    mask_ratio_per: str = knob("sample", "Draw one ratio a sample or one a batch (unstated).", ("sample", "batch"))
    cycle_stop_gradient: bool = knob(True, "Stop the gradient after the first encoder pass of a cycle (P sec. 7).")
    gumbel_strength: float = knob(1.0, "Gumbel noise on the logits of the text-image-text estimator (P sec. 7).")
    i2t2i_gumbel_strength: float = knob(0.0, "The same of the image-text-image estimator (P sec. 7: no gain).")
    cycle_keep_visible: bool = knob(True, "Text-image-text: tokens not masked in the first pass stay as synthesized "
                                    "(unstated).")  # fmt: skip
    cycle_pad_after_eos: bool = knob(True, "Image-text-image: slots after EOS are PAD (unstated).")


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Generation, and the synthesis inside the cycles (P sec. 7)."""

    num_decode_steps: int = knob(24, "Steps of parallel image decoding.")
    choice_temperature: float = knob(32.0, "Gumbel noise on the confidence that picks the tokens to keep.")
    decode_order: str = knob("confidence", "Which of the tokens just drawn are kept first.", ("confidence",))
    choice_anneal: str = knob("linear", "Anneal that noise to 0 over the steps (unstated).", ("linear", "constant"))
    guidance_scale: float = knob(2.0, "Classifier-free guidance lambda: (1 + lambda) cond - lambda uncond.")
    guidance_schedule: str = knob("linear", "Ramp the guidance up over the steps (unstated).", ("linear", "constant"))
    synth_cfg: bool = knob(True, "Guidance in the synthesis inside the cycle (unstated).")
    synth_decode_steps: int | None = knob(None, "Image decoding steps inside the cycle; by default num_decode_steps.")
    synth_drop_masked: bool = knob(False, "Drop masked tokens from the encoder while decoding, as in training.")
    beam_size: int = knob(4, "Beams of caption generation.")
    length_penalty: float = knob(0.6, "Exponent of the length penalty ((5 + length) / 6) ** x (GIT).")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Adafactor with constant decay rates, schedule, clipping (P table 3)."""

    learning_rate: float = knob(1e-4, "Peak learning rate.")
    lr_warmup_steps: int = knob(5000, "Steps of linear warm-up; cosine to 0 after it.")
    num_steps: int = knob(500_000, "Optimizer steps in all (P: 500K, or 1.5M for table 1).")
    beta1: float = knob(0.9, "Decay of the first moment.")
    beta2: float = knob(0.96, "Decay of the second moment.")
    weight_decay: float = knob(0.045, "Decoupled weight decay, multiplied by the learning rate.")
    decay_embeddings: bool = knob(True, "Decay the token tables, too (unstated).")
    grad_clip: float = knob(3.0, "Global norm that gradients are clipped to; 0: off.")
    update_clip: float = knob(1.0, "Root mean square that each Adafactor update is clipped to; 0: off (unstated).")
    skip_spikes: float = knob(0.0, "Skip updates whose gradient norm is above this many times its running mean; 0: "
                              "only those of a loss or gradient that is not finite, as always.")  # fmt: skip
    max_skipped: int = knob(10, "Updates skipped in a row before the run stops.")
    ema_decay: float = knob(0.0, "Decay of the averaged weights that generate; 0: off (P mentions none).")
    num_microbatches: int = knob(1, "Gradient accumulation: parts that each batch is split into.")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where pictures and texts come from. Patterns name TFRecord shards, local or gs://, separated by commas.

    With @N after each pattern they are a mixture: "a-*@3,b-*@1" takes three of four records from the first.
    """

    paired_data: str = knob("", "Shards with a picture and a text in each record. A mixture: a-*@3,b-*@1.")
    image_data: str = knob("", "Shards of unpaired pictures.")
    text_data: str = knob("", "Shards of unpaired texts.")
    eval_data: str = knob("", "Paired shards that sample pictures are made from; by default paired_data.")
    vocabulary: str = knob("", "SentencePiece model (.model); needed for texts that are not ready ids, and to print.")
    vqgan: str = knob("", "Folder of the image tokenizer (config.json, model.safetensors).")
    image_size: int | None = knob(None, "Side in pixels that pictures are resized and cropped to; by default that of "
                                  "--vqgan, else 256.")  # fmt: skip
    random_flip: bool = knob(False, "Flip half of the pictures left to right (wrong where captions say left or right).")
    max_bad_records: int = knob(0, "Damaged records to skip, each counted and named, before the run stops.")
    max_image_pixels: int = knob(50_000_000, "Pictures with more pixels than this count as damaged.")
    prefetch: int = knob(2, "Batches prepared ahead of the step.")
    block_bytes: int = knob(2 << 20, "Bytes read at once: a block of consecutive records. Changes the order.")
    shuffle_blocks: int = knob(4, "Blocks of a lane that have their records mixed. Changes the order.")
    read_ahead_mib: int = knob(256, "Blocks read before they are needed take at most about this.")
    read_requests: int = knob(16, "Reads under way at a time.")
    num_workers: int = knob(-1, "Threads that decode records; -1: one a core, up to 16; 0: those of prefetch alone.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run."""

    workdir: str = knob("", "Folder of checkpoints, logs and the resolved flagfile, local or gs://.")
    init_from: str = knob("", "Begin with the weights of this export or workdir, the optimizer fresh (fine-tuning).")
    seed: int = knob(0, "Seed of the weights, the data order and every draw.")
    backend: str = knob("auto", "Where to run: cpu, cuda, xla, or what else torch names (mps, xpu, ...); auto: xla if "
                        "there are TPUs, cuda if there is a GPU, else cpu.")  # fmt: skip
    cuda_graphs: bool = knob(True, "On a GPU, record a step as a CUDA graph; off: kernel by kernel, to debug.")
    compile: bool = knob(False, "torch.compile of the blocks and of the tokens of texts; not on XLA.")
    recompute_blocks: bool = knob(False, "Compute what is inside the blocks again in the backward pass: less memory, a "
                                  "longer step; not on XLA, and without CUDA graphs.")  # fmt: skip
    shard_state: bool = knob(False, "Under torchrun, a process keeps optimizer and averages of its weights alone.")
    shard_text_encoder: bool = knob(False, "Under torchrun, the processes of a node keep a share each of the text "
                                    "encoder's blocks, and gather one at a time.")  # fmt: skip
    mesh_data: int = knob(0, "XLA devices that the batch is split over, what products take copied; 0: the rest.")
    mesh_fsdp: int = knob(0, "XLA devices that the batch and the weights are split over; 0: up to 8.")
    xla_mode: str = knob("captured", "captured: each part of the step is traced once; lazy: at every step, to debug.",
                         ("captured", "lazy"))  # fmt: skip
    xla_cache: str = knob("~/.cache/itit", "Folder of compiled XLA programs, kept from run to run; empty: none.")
    profile_step: int = knob(-1, "Step (from 0) that is recorded for TensorBoard's profiler; -1: none.")
    compute_dtype: str = knob("bf16", "Type of matrix products; weights and losses stay float32.", ("bf16", "fp32"))
    matmul_precision: str = knob("highest", "How float32 products and convolutions are computed: high allows TF32 on "
                                 "GPUs; medium bf16 inside, a gain on processors with AMX.",
                                 ("highest", "high", "medium"))  # fmt: skip
    overfit_batch: bool = knob(False, "Train on the first batch for ever: the loss must go to its floor.")
    wandb_project: str = knob("", "Project of Weights & Biases that the metrics go to, too; empty: none. "
                              "With WANDB_MODE=offline they stay in workdir, for gs:// in ./wandb.")  # fmt: skip
    log_every: int = knob(50, "Steps between lines of metrics.")
    sample_every: int = knob(5000, "Steps between sample pictures and captions; 0: never.")
    num_samples: int = knob(8, "Prompts and pictures in the samples.")
    eval_every: int = knob(0, "Steps between losses and CIDEr on held-out pairs; 0: never.")
    num_eval: int = knob(512, "Pairs of eval_data that these are taken on.")
    eval_scenes: bool = knob(False, "The eval data are Scenes: also count the captions and pictures that are exact.")
    keep_best: str = knob("", "Keep the best checkpoint by this score of --eval_every in workdir/best.",
                          ("", "CIDEr", "i2t", "t2i", "captions_exact", "pictures_exact"))  # fmt: skip
    checkpoint_every: int = knob(5000, "Steps between checkpoints.")
    keep_last: int = knob(3, "Checkpoints kept.")
    keep_every: int = knob(0, "Checkpoints of steps that this divides are kept for ever; 0: none.")
    watchdog_factor: float = knob(20.0, "End the process, with all stacks, where log_every steps take this many times "
                                  "their median; 0: never.")  # fmt: skip
    watchdog_seconds: float = knob(600.0, "Least time before the watchdog does so.")
    stop_after_steps: int = knob(0, "Save and leave after this many steps of this call; 0: run to num_steps.")


# What people set first, beside the flagfile: on top of --help.
FIRST = ("workdir", "paired_data", "image_data", "text_data", "eval_data", "vqgan", "vocabulary", "preset", "num_steps")


@dataclasses.dataclass(frozen=True)
class Config:
    """All sections. Build with `Config(...).resolve()`."""

    model: ModelConfig = section(ModelConfig)
    t5: T5Config = section(T5Config, prefix="t5_")
    objective: ObjectiveConfig = section(ObjectiveConfig)
    decode: DecodeConfig = section(DecodeConfig)
    optim: OptimConfig = section(OptimConfig)
    data: DataConfig = section(DataConfig)
    train: TrainConfig = section(TrainConfig)

    def resolve(self):
        """Fills in what is None and checks every value. Reads no file. Raises ValueError with one line naming flag and
        allowed values."""
        _check_choices(self)
        data, model = _fill(self.data, USUAL), _fill(self.model, USUAL | MODEL_PRESETS[self.model.preset])
        t5 = _fill(self.t5, T5_PRESETS[self.t5.size] | {"vocab_size": model.vocab_size})
        model = _fill(model, {"text_feature_dim": t5.dim, "bos_id": model.vocab_size - 1})
        config = dataclasses.replace(self, model=model, t5=t5, data=data)
        check_ranges(values_of(config))
        check(config)
        return config


def fields(config):
    """Yields (flag name, section name or None, dataclass field) for every setting of a config or of one section."""
    for field in dataclasses.fields(config):
        if "prefix" not in field.metadata:
            yield field.name, None, field
            continue
        for inner in dataclasses.fields(getattr(config, field.name)):
            yield field.metadata["prefix"] + inner.name, field.name, inner


def values_of(config):
    """Flag name -> value, of every setting of a config or of one section."""
    return {name: getattr(getattr(config, owner) if owner else config, field.name)
            for name, owner, field in fields(config)}  # fmt: skip


def replace(config, **values):
    """`config` with flags of these names changed, wherever their section is. Raises ValueError for an unknown name."""
    owners = {name: (owner, field) for name, owner, field in fields(config)}
    changed = {}
    for name, value in values.items():
        if name not in owners:
            near = difflib.get_close_matches(name, owners, 1)
            raise ValueError(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        owner, field = owners[name]
        changed.setdefault(owner, {})[field.name] = value
    for owner, inner in changed.items():
        if owner is None:
            config = dataclasses.replace(config, **inner)
        else:
            config = dataclasses.replace(config, **{owner: dataclasses.replace(getattr(config, owner), **inner)})
    return config


def to_json(section_config):
    """One section as JSON text, to lie beside weights."""
    return json.dumps(dataclasses.asdict(section_config), indent=1)


def from_json(cls, text, place):
    """The inverse of `to_json`. Raises ValueError naming `place` and the first field that does not belong, or whose
    value a flag of that name would refuse."""
    values, known = parse_json(text, place), {field.name: field for field in dataclasses.fields(cls)}
    prefix = next((f.metadata["prefix"] for f in dataclasses.fields(Config) if f.type is cls), "")
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{place}: unknown field {shown(repr(name))}; known: {', '.join(known)}")
        values[name] = value = tuple(value) if isinstance(value, list) else value
        choices = known[name].metadata["choices"]
        if not _is_of(value, known[name].type) or choices and value not in choices:
            allowed = f"one of {', '.join(choices)}" if choices else f"of type {_called(known[name].type)}"
            raise ValueError(f"{place}: {name}={shown(str(value))}: must be {allowed}")
        try:
            check_ranges({prefix + name: value})
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return cls(**values)


def _called(kind):
    return getattr(kind, "__name__", "") if typing.get_origin(kind) is None else str(kind)


def _is_of(value, kind):
    """Whether a value of a JSON text is of the type of a field: int, float, bool, str, tuple[int, ...], int | None."""
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of(part, typing.get_args(kind)[0]) for part in value)
    if typing.get_args(kind):
        return any(_is_of(value, part) for part in typing.get_args(kind))
    if kind is float and type(value) is int:
        return True
    return type(value) is kind


def _fill(part, defaults):
    missing = {name: value for name, value in defaults.items() if getattr(part, name, value) is None}
    return dataclasses.replace(part, **missing)


def _check_choices(config):
    for name, owner, field in fields(config):
        value = getattr(getattr(config, owner) if owner else config, field.name)
        choices = field.metadata["choices"]
        if choices and value not in choices:
            near = difflib.get_close_matches(str(value), choices, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"--{name}={value!r}: choose one of {', '.join(choices)}{hint}")
