"""Comparable models of others, from PyPI, with random weights: what `tools.bench_generate` times ITIT beside.

Each is a function of a batch size that returns a callable, and a torch module whose parameters are counted. All see the
same amount of text, as features that are there already, and draw the same number of tokens; none draws pixels.
"""

import torch
from diffusers import AmusedScheduler, UVit2DModel
from muse_maskgit_pytorch import MaskGit, MaskGitTransformer, VQGanVAE
from muse_maskgit_pytorch import t5 as muse_t5
from PIL import ImageFile
from transformers import GitConfig, GitForCausalLM, T5Config

ImageFile.LOAD_TRUNCATED_IMAGES = False  # muse-maskgit-pytorch sets it for the whole process: cut pictures would pass

TEXT_TOKENS, CODES, GRID = 64, 8192, 16
T5_SIZE, TEXT_DIM = "base", 768  # of the texts
BOS, EOS, PAD = 101, 102, 0

# Width, heads and blocks; at "B" about as many parameters as the parts of ITIT-B that do the same.
SIZES = {
    "B": {"dim": 768, "heads": 12, "git_blocks": 12, "git_text_blocks": 6, "amused_blocks": 5, "muse_blocks": 14},
    "nano": {"dim": 128, "heads": 4, "git_blocks": 2, "git_text_blocks": 2, "amused_blocks": 1, "muse_blocks": 2},
}


def git(size, batch, length, num_beams):
    """GIT (arXiv:2205.14100) as transformers has it: captions of 224x224 pixels, all `length` tokens long."""
    s = SIZES[size]
    widths = {"hidden_size": s["dim"], "intermediate_size": 4 * s["dim"], "num_attention_heads": s["heads"]}
    vision = {**widths, "num_hidden_layers": s["git_blocks"], "image_size": 224, "patch_size": 16}
    model = GitForCausalLM(GitConfig(vision_config=vision, num_hidden_layers=s["git_text_blocks"], **widths)).eval()
    pixels, start = torch.rand(batch, 3, 224, 224), torch.full((batch, 1), BOS)

    def run():
        return model.generate(
            input_ids=start, attention_mask=torch.ones_like(start), pixel_values=pixels, num_beams=num_beams,
            do_sample=False, min_new_tokens=length, max_new_tokens=length, length_penalty=0.6, eos_token_id=EOS,
            pad_token_id=PAD,
        )  # fmt: skip

    return run, model


def amused(size, batch, num_steps, guidance):
    """aMUSEd (arXiv:2401.01808) as diffusers has it: its transformer and its scheduler, with guidance."""
    s = SIZES[size]
    model = UVit2DModel(
        hidden_size=s["dim"], cond_embed_dim=TEXT_DIM, encoder_hidden_size=TEXT_DIM, vocab_size=CODES + 64,
        codebook_size=CODES, in_channels=s["dim"], block_out_channels=s["dim"], block_num_heads=s["heads"],
        num_hidden_layers=s["amused_blocks"], num_attention_heads=s["heads"], intermediate_size=s["dim"] * 8 // 3,
        num_res_blocks=3 if size == "B" else 1, micro_cond_embed_dim=1280, sample_size=GRID,
    ).eval()  # fmt: skip
    mask_id = CODES + 63
    scheduler = AmusedScheduler(mask_token_id=mask_id)
    text, pooled = torch.randn(2 * batch, TEXT_TOKENS, TEXT_DIM), torch.randn(2 * batch, TEXT_DIM)
    sizes = torch.tensor([[256.0, 256.0, 0.0, 0.0, 6.0]]).expand(2 * batch, -1)

    @torch.no_grad()
    def run():
        ids = torch.full((batch, GRID, GRID), mask_id)
        scheduler.set_timesteps(num_steps)
        for step in scheduler.timesteps:
            logits = model(torch.cat([ids] * 2), text, pooled, sizes)
            without, given = logits.chunk(2)
            ids = scheduler.step(without + guidance * (given - without), step, ids).prev_sample
        return ids

    return run, model


class _Codes(VQGanVAE):
    """Stands where muse-maskgit-pytorch wants an image tokenizer: leaves codes as they are."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.codebook_size = CODES

    def copy_for_eval(self):
        return self

    def get_encoded_fmap_size(self, image_size):
        return GRID

    def decode_from_ids(self, ids):
        return ids


def muse(size, batch, num_steps, guidance, flash=True):
    """Muse (arXiv:2301.00704) as muse-maskgit-pytorch has it, its base transformer, with guidance.

    `flash`: its own flash attention, which knows float32 alone.
    """
    s = SIZES[size]
    muse_t5.T5_CONFIGS["features"] = {"config": T5Config(d_model=TEXT_DIM)}  # else it would be fetched
    transformer = MaskGitTransformer(
        num_tokens=CODES, seq_len=GRID**2, dim=s["dim"], depth=s["muse_blocks"], dim_head=s["dim"] // s["heads"],
        heads=s["heads"], t5_name="features", flash=flash,
    )  # fmt: skip
    text = torch.randn(batch, TEXT_TOKENS, TEXT_DIM)
    transformer.encode_text = lambda texts: text
    model = MaskGit(image_size=256, transformer=transformer, vae=_Codes()).eval()

    @torch.no_grad()
    def run():
        return model.generate([""] * batch, fmap_size=GRID, timesteps=num_steps, cond_scale=guidance)

    return run, model
