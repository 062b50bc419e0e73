"""CIFAR-10, unconditional, 35.7 M parameters: the recipe of Ho et al. 2020 with one global gradient clip.

Command: python -m ddpm_jax.train --config=configs/cifar10.py --workdir=runs/cifar10
Data: through TFDS, or the original file cifar-10-binary.tar.gz in a folder given by --config.data.path.
Hardware and time: meant for a GPU or a TPU; not yet run.
To expect: the paper reports FID 3.17 (5.24 against the test set), Inception Score 9.46 and at most 3.75 bits/dim (its
tables 1 and 2, section 4.1), of the best checkpoint by FID among 800,000 steps at batch 128.
Differs from `cifar10_paper`: clip of the averaged gradient, warm-up that starts above 0, EMA that warms up.
"""

from ddpm_jax.configs.base import get_config as get_config  # the defaults are this recipe
