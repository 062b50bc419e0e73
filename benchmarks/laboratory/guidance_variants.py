"""The variants of guidance by a reference, side by side."""

import dataclasses

from ddpm_jax.diffusion.exact import GaussianMixture
from ddpm_jax.diffusion.projected_guidance import make_projection
from laboratory.claims import LABEL, Claim, Settings, in_thousandths, of_class, side_by_side
from laboratory.distances import estimate
from laboratory.laws import pinwheel
from laboratory.methods import SAMPLERS

# Deviations of the noise that flawed networks see in the data. The excess of the weaker one's variance is four times as
# large, so that a scale of 4/3 extrapolates to no excess.
FLAW, WEAKER_FLAW, SCALE_OF_FLAW = 0.12, 0.24, 4 / 3


def variants_table(settings: Settings) -> list[list[str]]:
    """Each variant against the law of the class, and against p(x) p(class | x)^scale.

    Autoguidance corrects a flawed network: one that has learned the law with some noise added to the data. Its
    reference has learned the same with more noise.
    """
    law, process, scale = pinwheel(settings.num_dims), settings.process(), settings.variant_scale
    claims = [
        Claim(lambda rng, num, one=one: law.sample_sharpened(rng, num, label=LABEL, scale=one)[0], settings)
        for one in (1.0, scale)
    ]
    rows = [
        ["exact samples of the class", in_thousandths(estimate(claims[0].floor)), "", *of_class(law, claims[0].exact)],
        ["exact samples, sharpened", "", in_thousandths(estimate(claims[1].floor)),
         *of_class(law, claims[1].exact)],
    ]  # fmt: skip
    table = SAMPLERS["ancestral"](process, settings.variant_calls)
    exact = settings.drawer(process, law, settings.variant_calls)
    flawed = settings.drawer(process, with_noise(law, FLAW), settings.variant_calls, weak=with_noise(law, WEAKER_FLAW))
    low, high = settings.interval
    variants = {
        "no guidance": (exact, {"scale": 1.0}),
        f"classifier-free, {scale:g}": (exact, {"scale": scale}),
        f"classifier-free, {scale:g}, in {low:g},{high:g}": (exact, {"scale": scale, "interval": settings.interval}),
        f"classifier-free, {scale:g}, rescale 0.7": (exact, {"scale": scale, "rescale": 0.7}),
        f"APG, {scale:g}, eta 0": (exact, {"scale": scale, "projection": make_projection(eta=0.0)}),
        f"APG, {scale:g}, eta 1, norm 0.1": (
            exact,
            {"scale": scale, "projection": make_projection(eta=1.0, norm_limit=0.1)},
        ),
        **{f"CFG++, {part:g}": (exact, {"scale": part, "renoises": True}) for part in (0.3, 0.6, 1.0)},
        "flawed network, no guidance": (flawed, {"scale": 1.0}),
        f"flawed network, autoguidance {SCALE_OF_FLAW:.3g}": (flawed, {"scale": SCALE_OF_FLAW}),
    }
    for name, (draw, given) in variants.items():
        runs = side_by_side(lambda seed: draw(table, seed, label=LABEL, **given), settings.repetitions)  # noqa: B023
        rows.append([name, *(in_thousandths(claim.distances(runs)) for claim in claims), *of_class(law, runs[0])])
    return rows


def with_noise(law: GaussianMixture, deviation: float) -> GaussianMixture:
    """The law of x_0 + deviation z."""
    return dataclasses.replace(law, variances=law.variances + deviation**2)
