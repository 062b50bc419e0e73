"""The edits by name, and the settings of each: their defaults and what they may be."""

from collections.abc import Mapping
from dataclasses import dataclass

from ddpm_jax.runtime.errors import UserError, arg, check_between, check_one_of, real_number, whole_number

MAX_RESULTS = 10_000_000  # of all images together: more files than a folder is good for, and a mistyped number
_MAX_ZETA = 1000.0  # useful ones are 0.1 to 2; so far beyond them the steps lead away from every image
# Beyond these a mistyped number would fill the memory: the sampler's tables have a row for each network call.
_LIMITS = {
    "jump_length": (1, 1_000_000), "num_resamplings": (1, 1_000_000), "num_fixed_point": (0, 1_000_000),
    "factor": (2, 1024), "num_pairs": (1, 1_000_000),
}  # fmt: skip
SIDES = ("left", "right", "top", "bottom")
_REPAINT = {"jump_length": 10, "num_resamplings": 10}
_DPS = {"zeta": 0.5}
TRAINED = "trained"  # the method of a network that was trained for the edit
_INPAINTING = {"repaint": _REPAINT, "replacement": {}, "ddnm": {}, "dps": _DPS, TRAINED: {}}
# The task of an image-conditional network (`condition.task`) -> the edits that it was trained for.
EDITS_OF_TASK = {
    "inpaint": ("inpaint", "outpaint"),
    "uncrop": ("outpaint", "inpaint"),
    "colourise": ("colourise",),
    "jpeg": ("restore",),
    "deblur": ("restore",),
    "super_resolve": ("super_resolve",),
}


@dataclass(frozen=True)
class Kind:
    """One edit: what it does, its methods, of which the first is the default, and its settings with their defaults.

    Attributes:
      of_pixels: it needs an x_0 that is the image, and not that of another codec; so does every mask.
    """

    about: str
    methods: Mapping[str, Mapping[str, object]]  # method -> settings of that method alone
    settings: Mapping[str, object]
    takes_mask: bool = False
    needs_mask: bool = False
    of_pixels: bool = False


EDITS: dict[str, Kind] = {
    "inpaint": Kind(
        "draws the hole of an image, given a mask or the name of a hole",
        _INPAINTING,
        {},
        takes_mask=True,
        needs_mask=True,
        of_pixels=True,
    ),
    "outpaint": Kind(
        "continues an image beyond one side, by half its size",
        _INPAINTING,
        {"side": "right"},
        of_pixels=True,
    ),
    "sdedit": Kind(
        "noises an image and draws it again; with a mask, only the hole",
        {"sdedit": {}},
        {"strength": 0.5},
        takes_mask=True,
    ),
    "variation": Kind(
        "images near an image: its DDIM latent is mixed with noise", {"ddim": {"num_fixed_point": 5}}, {"strength": 0.3}
    ),
    "interpolate": Kind(
        "images between each image and another one",
        {"ddim": {"num_fixed_point": 5}, "noised": {"strength": 0.5}, "noise": {"num_pairs": 4}},
        {},
    ),
    "colourise": Kind("gives a grey image colours", {"ddnm": {}, "dps": _DPS, TRAINED: {}}, {}, of_pixels=True),
    "restore": Kind(
        "repairs an image, by a network that was trained for it: jpeg, deblur", {TRAINED: {}}, {}, of_pixels=True
    ),
    "super_resolve": Kind(
        "enlarges a small image", {"ddnm": {}, "ilvr": {}, "dps": _DPS, TRAINED: {}}, {"factor": 4}, of_pixels=True
    ),
}
# Every setting of any edit -> the edits that have it, as "inpaint" or "inpaint with method=repaint".
_OWNERS: dict[str, list[str]] = {}
for _what, _kind in EDITS.items():
    for _name in _kind.settings:
        _OWNERS.setdefault(_name, []).append(_what)
    for _method, _settings in _kind.methods.items():
        for _name in _settings:
            _OWNERS.setdefault(_name, []).append(_what if len(_kind.methods) == 1 else f"{_what} by {_method}")
EDIT_SETTINGS = ("method", *_OWNERS)


def checked_settings(what: str, given: Mapping[str, object], task: str | None = None) -> dict[str, object]:
    """All settings of an edit: those given, and the defaults of the others; "method" is always one of them.

    Args:
      what: one of EDITS.
      given: some of EDIT_SETTINGS by name.
      task: that of the run, "" without one; None: not yet known.

    Raises:
      UserError: an unknown edit, method or setting, one that the edit does not read, or a value outside its range.
    """
    check_one_of("what", what, EDITS)
    kind = EDITS[what]
    method = given.get("method", TRAINED if task else next(iter(kind.methods)))
    if task is not None:
        _check_task(what, method, task)
    check_one_of("method", method, kind.methods)
    known = {**kind.settings, **kind.methods[method]}
    for name in given:
        if name != "method" and name not in known:
            check_one_of("a setting of an edit", name, EDIT_SETTINGS)
            raise UserError(
                f"{arg(name)} is a setting of {', '.join(_OWNERS[name])}; got {arg(f'what={what}')} by {method}, which "
                "does not read it"
            )
    settings = {"method": method, **known, **given}
    _check_ranges(settings)
    return settings


def _check_task(what: str, method: object, task: str) -> None:
    """Raises UserError unless the run can do the edit by the method: with a task that of its training alone."""
    if task and (what not in EDITS_OF_TASK[task] or method != TRAINED):
        got = f"{arg(f'what={what}')}" + (f" by {method}" if method != TRAINED else "")
        raise UserError(
            f"a network with condition.task={task!r} was trained for {' and '.join(EDITS_OF_TASK[task])} by {TRAINED}; "
            f"got {got}: take a run without a task for other edits"
        )
    if not task and method == TRAINED:
        tasks = [name for name, edits in EDITS_OF_TASK.items() if what in edits]
        raise UserError(
            f"{arg(f'what={what}')} by {TRAINED} needs a network that was trained for it, with condition.task="
            f"{' or '.join(tasks)}; this run has none: docs/image_conditions.md"
        )


def _check_ranges(settings: dict[str, object]) -> None:
    if "side" in settings:
        check_one_of("side", settings["side"], SIDES)
    for name, (least, most) in _LIMITS.items():
        if name in settings:
            settings[name] = whole_number(name, settings[name])
            check_between(name, settings[name], least, most)
    if "zeta" in settings:
        zeta = settings["zeta"] = real_number("zeta", settings["zeta"])
        if not 0 <= zeta <= _MAX_ZETA:
            raise UserError(f"{arg('zeta')} must be in [0, {_MAX_ZETA:g}], 0 for no influence; got {zeta:g}")
    if "strength" in settings:
        strength = settings["strength"] = real_number("strength", settings["strength"])
        if not 0 <= strength <= 1:
            raise UserError(f"{arg('strength')} must be in [0, 1], 0 for the image itself; got {strength:g}")
