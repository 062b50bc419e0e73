"""What comes out of another code's file: a whole config and the weights of its network."""

from dataclasses import dataclass

from ml_collections import ConfigDict


@dataclass(frozen=True)
class Imported:
    """A trained network by our names, not yet in a workdir.

    Attributes:
      config: complete and locked, as of `configuration.load_config`.
      params: the float32 NumPy tree of `factories.build_model(config)`.
      ema_params: the averaged weights; `params` itself where the file holds one set.
      notes: lines worth telling the person, such as what the file does not say.
    """

    config: ConfigDict
    params: dict
    ema_params: dict
    notes: tuple[str, ...] = ()
