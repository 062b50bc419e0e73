"""A classifier of noised digits, for classifier guidance of a model of digits: 0.3 M parameters.

Command: python -m ddpm_jax.train --config=configs/classifier_digits.py --workdir=runs/classifier_digits
Hardware and time: 2 CPU cores, about 3 minutes.
Expected results: docs/classifier_guidance.md.

It classifies x_t of the process of configs/digits.py: schedule, codec and image size must be those of the diffusion
model that it guides (Dhariwal and Nichol 2021, section 4).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.objective.name = "classifier"
    config.model.num_classes = 10
    config.unet.head_channels = 32
    config.unet.dropout = 0.1
    config.optim.weight_decay = 0.05
    config.train.num_steps = 1200
    config.train.checkpoint_every_steps = 400
    return config
