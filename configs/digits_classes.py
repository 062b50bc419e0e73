"""The digits with classes and classifier-free guidance: you choose which digit to draw; 0.7 M parameters.

Command: python -m ddpm_jax.train --config=configs/digits_classes.py --workdir=runs/digits_classes
Then: python -m ddpm_jax.sample --workdir=runs/digits_classes --num_samples=100 --guidance_scale=1.5
  --guidance_interval=-2,4 --out=runs/digits_classes/samples/guided
Hardware and time: 2 CPU cores, about 8 minutes.
Expected results: docs/guidance.md.

A tenth of the training images are shown without their class, so that the network also learns the distribution of all
digits. Guidance moves a sample away from that distribution (Ho and Salimans 2022).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.model.num_classes = 10
    config.condition.drop_rate = 0.1
    return config
