"""Sizes of the networks by name, and those that tokenizers usually have."""

# Of what a run reads, where neither a flag nor a file tells: those of the paper.
USUAL = {"image_size": 256, "num_image_tokens": 256, "num_text_tokens": 64, "codebook_size": 8192, "vocab_size": 32128}

# Widths and depths. B, L, H: ViT-B/L/H encoder, 8 image blocks at encoder width (MAGE), 6 text blocks at 768 (GIT).
MODEL_PRESETS = {
    "nano": dict(embed_dim=128, depth=4, num_heads=4, image_decoder_depth=2, text_decoder_dim=128,
                 text_decoder_depth=2, text_decoder_num_heads=4),
    "tiny": dict(embed_dim=256, depth=6, num_heads=4, image_decoder_depth=4, text_decoder_dim=256,
                 text_decoder_depth=3, text_decoder_num_heads=4),
    "B": dict(embed_dim=768, depth=12, num_heads=12, image_decoder_depth=8, text_decoder_dim=768,
              text_decoder_depth=6, text_decoder_num_heads=12),
    "L": dict(embed_dim=1024, depth=24, num_heads=16, image_decoder_depth=8, text_decoder_dim=768,
              text_decoder_depth=6, text_decoder_num_heads=12),
    "H": dict(embed_dim=1280, depth=32, num_heads=16, image_decoder_depth=8, text_decoder_dim=768,
              text_decoder_depth=6, text_decoder_num_heads=12),
}  # fmt: skip

# T5 v1.1 encoders (arXiv:1910.10683; sizes of the public checkpoints), and a nano one for machines without weights.
T5_PRESETS = {
    "nano": dict(dim=64, head_dim=16, ff_dim=128, num_layers=2, num_heads=4),
    "small": dict(dim=512, head_dim=64, ff_dim=1024, num_layers=8, num_heads=6),
    "base": dict(dim=768, head_dim=64, ff_dim=2048, num_layers=12, num_heads=12),
    "large": dict(dim=1024, head_dim=64, ff_dim=2816, num_layers=24, num_heads=16),
    "xl": dict(dim=2048, head_dim=64, ff_dim=5120, num_layers=24, num_heads=32),
    "xxl": dict(dim=4096, head_dim=64, ff_dim=10240, num_layers=24, num_heads=64),
}
