"""Packaging of ddpm_jax: `pip install -e .` for use, `pip install -e '.[test]'` for the tests."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="ddpm_jax",
    version=re.search(r'^__version__ = "(.*)"', (HERE / "ddpm_jax/__init__.py").read_text("utf-8"), re.MULTILINE)[1],
    description="Denoising diffusion probabilistic models in JAX and Flax, for TPU, GPU and CPU",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    keywords=["diffusion models", "DDPM", "generative models", "JAX", "Flax", "image generation"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["ddpm_jax", "ddpm_jax.*"]), "ddpm_jax.configs"],
    # The experiments live in the top-level folder configs/ and are installed as ddpm_jax.configs,
    # so that no package with the generic name `configs` reaches site-packages.
    package_dir={"ddpm_jax.configs": "configs"},
    package_data={"ddpm_jax": ["py.typed", "pretrained/*/*"]},
    entry_points={"console_scripts": ["ddpm_jax = ddpm_jax.__main__:main"]},
    # The lower bounds are what Colab's TPU runtime ships: pip then leaves its jax and libtpu alone.
    install_requires=[
        "jax>=0.7.2",
        "flax>=0.11.2",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.4,<1",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",  # tensorflow-datasets 4.9.10 needs it without declaring it
        "ml-collections>=1.1",
        "numpy>=2.1",
        "absl-py>=1.4",
        "jaxtyping",
        "matplotlib>=3.10",  # the curves of `evaluate`
        "pillow",
        "safetensors>=0.4.5",
        "scikit-learn",  # the embedded digits
        "scipy",
        "tensorboardX",
        "tqdm",
    ],
    extras_require={
        "test": [
            "pytest", "pytest-xdist", "filelock", "hypothesis", "beartype", "nbclient", "nbformat", "ipykernel", "ruff",
            "tensorboard",
        ],
        "docs": ["sphinx>=8", "myst-parser>=4", "furo"],
        "notebook": ["jupyterlab"],
        "parity": ["torch", "diffusers==0.42.0", "denoising-diffusion-pytorch"],
        "tfds-prepare": ["tensorflow-cpu"],
    },
)
