"""CIFAR-10, unconditional, 35.7 M parameters: the recipe of Ho et al. 2020 with one global gradient clip.

Command: python -m ddpm_jax.train --config=configs/cifar10.py --workdir=runs/cifar10
Data: from TFDS, or the original file cifar-10-binary.tar.gz in the folder given by --config.data.path.
Hardware and time: meant for a GPU or a TPU; not yet run.
Expected results: the paper reports FID 3.17 (5.24 against the test set), Inception Score 9.46 and at most 3.75 bits/dim
(its tables 1 and 2, section 4.1) for the best checkpoint by FID among 800,000 steps at batch size 128.
Differences from `cifar10_paper`: the averaged gradient is clipped, the warm-up starts above 0, and the EMA warms up.
"""

from ddpm_jax.configs.base import get_config as get_config  # the defaults are this recipe
