"""CIFAR-10 exactly as the code of Ho et al. 2020 trains it, including its peculiarities: 35.7 M parameters.

Command: python -m ddpm_jax.train --config=configs/cifar10_paper.py --workdir=runs/cifar10_paper
Peculiarities: each of 8 replicas clips its own gradient (global norm 1) before the gradients are averaged; the learning
rate of the first update is 0; the first EMA update copies the parameters. The 8 parts of the batch are computed one
after another, so that the result does not depend on the number of devices. The cost is 8 smaller passes per update.
Hardware and time: the original ran on a TPU v3-8; not yet run here.
Expected results: the paper reports FID 3.17 (5.24 against the test set), Inception Score 9.46 and at most 3.75 bits/dim
(its tables 1 and 2, section 4.1) for the best checkpoint by FID among 800,000 steps at batch size 128.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs.base import get_config as base_config


def get_config() -> ConfigDict:
    config = base_config()
    with config.unlocked():
        config.optim.first_step_zero = True
        config.optim.ema_start = "copy_first"
        config.optim.grad_clip = 0.0
        config.optim.clip_replicas = 8
    return config
