"""What is said of the guidance of samples."""

from collections.abc import Mapping


def guidance_text(settings: Mapping[str, object]) -> str:
    """In words: "guidance scale 3, interval -2,4"; "" where there is none.

    Args:
      settings: the fields of `sample`.
    """
    classifier = ""
    if settings["classifier"] and settings["classifier_scale"]:
        classifier = f"classifier {settings['classifier']} with scale {settings['classifier_scale']:g}"
    if settings["guidance_scale"] == 1 and not settings["cfg_plus_plus"]:
        return classifier
    lists = {
        name: ",".join(f"{number:g}" for number in settings[name]) for name in ("guidance_interval", "negative_classes")
    }
    parts = [
        f"{'CFG++ with lambda' if settings['cfg_plus_plus'] else 'guidance scale'} {settings['guidance_scale']:g}",
        f"away from the network {settings['autoguidance']}" if settings["autoguidance"] else "",
        f"interval {lists['guidance_interval']}" if lists["guidance_interval"] else "",
        f"rescale {settings['guidance_rescale']:g}" if settings["guidance_rescale"] else "",
        f"APG eta {settings['apg_eta']:g}" if settings["apg_eta"] != 1 else "",
        f"APG norm {settings['apg_norm']:g}" if settings["apg_norm"] else "",
        f"away from classes {lists['negative_classes']}" if lists["negative_classes"] else "",
    ]
    return ", ".join(part for part in (*parts, classifier) if part)
