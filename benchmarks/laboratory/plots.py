"""The pictures of the exact laboratory."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ddpm_jax.diffusion.exact import GaussianMixture
from laboratory.distances import Estimate

_SIDE = np.linspace(-1.25, 1.25, 200)
_SHOWN = 2000  # points per panel
_ONE_STEP = ("ancestral", "ddim", "heun")
_OTHER_SPACINGS = (", karras", ", log_snr")


def save_samplers(path: str, calls: Sequence[int], curves: Mapping[str, list[Estimate]], floor: Estimate) -> None:
    """Distance against network calls, one line per sampler, and the distance of exact samples."""
    figure = Figure(figsize=(10, 5), layout="constrained", dpi=120)
    panels = figure.subplots(1, 2, sharey=True)
    of_one_step = [name for name in curves if name.startswith(_ONE_STEP)]
    of_many = [name for name in curves if name not in of_one_step]
    titles = ("each step by itself", "multistep")
    for axes, names, title in zip(panels, (of_one_step, of_many), titles, strict=True):
        for i, name in enumerate(names):
            means = [1000 * one.mean for one in curves[name]]
            line = "--" if name.endswith(_OTHER_SPACINGS) else "-"
            axes.plot(calls, means, line, marker="o", markersize=3, color=f"C{i}", label=name)
        axes.axhline(1000 * floor.mean, color="0.3", linestyle=":", label="exact samples")
        axes.set(xscale="log", yscale="log", xlabel="network calls")
        axes.set_xticks(calls, [str(n) for n in calls])
        axes.minorticks_off()
        axes.grid(True, linewidth=0.5, color="0.88")
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=8, loc="upper right")
    panels[0].set_ylabel("1000 x sliced W2 to the data")
    panels[0].set_ylim(top=min(panels[0].get_ylim()[1], 600))  # beyond that a sampler has left the data
    figure.savefig(path)


def save_guidance(
    path: str, law: GaussianMixture, exact: Mapping[float, np.ndarray], drawn: Mapping[float, np.ndarray]
) -> None:
    """One column per scale: exact samples of p(x) p(class | x)^scale above what guidance draws."""
    figure = Figure(figsize=(2.6 * len(exact), 5.4), layout="constrained", dpi=120)
    panels = figure.subplots(2, len(exact), squeeze=False)
    for column, scale in enumerate(exact):
        for axes, samples, name in zip(
            panels[:, column], (exact[scale], drawn[scale]), ("exact", "guided"), strict=True
        ):
            _scatter(axes, law, samples, f"{name}, scale {scale:g}")
    figure.savefig(path)


def save_inpainting(path: str, law: GaussianMixture, shown: Mapping[str, np.ndarray]) -> None:
    """The density of the unknown coordinate: exact, and by each method."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    first = next(iter(shown.values()))
    _scatter(left, law, law.sample(np.random.default_rng(0), _SHOWN)[0], "the data")
    left.set(xlabel="the known coordinate", ylabel="the unknown coordinate")
    left.axvline(first[0, 0], color="C3", linewidth=1)
    bins = np.linspace(-1.25, 1.25, 90)
    for name, samples in shown.items():
        style = (
            {"color": "0.75", "histtype": "stepfilled"} if name == "exact" else {"histtype": "step", "linewidth": 1.3}
        )
        right.hist(samples[:, 1], bins, density=True, label=name, **style)
    right.set(xlabel="the unknown coordinate", ylabel="density", title="at the red line")
    right.title.set_fontsize(9)
    figure.legend(*right.get_legend_handles_labels(), fontsize=8, frameon=False, ncols=2, loc="outside lower center")
    figure.savefig(path)


def _scatter(axes, law: GaussianMixture, samples: np.ndarray, title: str) -> None:
    grid = np.stack(np.meshgrid(_SIDE, _SIDE, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(law.log_prob(grid)).reshape(len(_SIDE), -1)
    axes.contour(
        _SIDE, _SIDE, density.T, levels=density.max() * np.array([0.02, 0.15, 0.5]), colors="0.8", linewidths=0.7
    )
    axes.scatter(*samples[:_SHOWN].T, s=2, color="#1f4e79", alpha=0.35, linewidths=0)
    axes.set(xlim=(_SIDE[0], _SIDE[-1]), ylim=(_SIDE[0], _SIDE[-1]), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=9)
