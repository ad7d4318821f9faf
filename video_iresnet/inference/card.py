"""What the model card of a trained network says, from the files of its run."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import build
from ..config import changed_yaml
from ..engine.views import weights_hash
from ..report.results import read_results, table
from ..runtime.errors import InputError, printable, reason
from ..runtime.stamp import lines
from .pretrained import published
from .trained import Trained

# Punctuation that Markdown leaves as it is; the rest of it is escaped.
HARMLESS = " ,()/%'\"-"


def card_values(trained: Trained) -> dict[str, Any]:
    """Return the values of card.md.jinja: Markdown in which everything from files is escaped. The figures are
    those of the run's results.json, if its test was of these very weights. Raises InputError.
    """
    cfg = published(trained.cfg)
    of_images = cfg.MODEL.DIMS == 2
    parameters = sum(parameter.numel() for parameter in trained.network.parameters())
    network = f"{cfg.MODEL.ARCH}-{cfg.RESNET.DEPTH}"
    rows = [f"| {number} | {markdown(name)} |" for number, name in enumerate(trained.class_names)]
    stamp = trained.info.get("stamp")
    stamp = stamp if isinstance(stamp, dict) else {}
    return {
        "title": markdown(f"{network}, {len(rows)} classes"),
        "network": markdown(network),
        "parameters": f"{parameters / 1e6:.2f}",
        "of_images": of_images,
        "thing": "picture" if of_images else "video",
        "clips": markdown(f"{build.clip_text(cfg)} (frames x sampling rate)"),
        "pixels": cfg.DATA.TEST_CROP_SIZE,
        "many_labels": cfg.DATA.MULTI_LABEL,
        "results": _results(trained),
        "train_list": markdown(
            f"{cfg.DATA.TRAIN_LIST}, {stamp['train_list']}" if "train_list" in stamp else ""
        ),
        "config": fenced(changed_yaml(cfg), "yaml"),
        "stamp": fenced("\n".join(lines(stamp))) if stamp else "",
        "num_classes": len(rows),
        "classes": "\n".join(rows),
    }


def _results(trained: Trained) -> dict[str, str]:
    """Return the figures of a test; empty if the run's folder has none of these weights."""
    path = Path(trained.path).parent.parent / "results.json"
    results = read_results(path)
    try:
        if not results or not _is_of(results, trained):
            return {}
        return {
            "table": fenced(table(results)),
            "protocol": markdown(str(results["protocol"])),
            "test_list": markdown(
                f"{Path(trained.cfg.DATA.TEST_LIST).name}, {results['stamp']['test_list']}"
            ),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} lacks figures of a test ({reason(error)}); run the test again") from error


def _is_of(results: Mapping[str, Any], trained: Trained) -> bool:
    tested = str(results.get("stamp", {}).get("weights", ""))
    return bool(tested) and weights_hash(trained.network.state_dict()).startswith(tested)


def markdown(text: str) -> str:
    """Return the text as one line of Markdown that shows its characters and nothing else."""
    special = set(string.punctuation) - set(HARMLESS)
    return "".join(f"\\{c}" if c in special else c for c in printable(text))


def fenced(text: str, language: str = "") -> str:
    """Return lines of text as a block of code, which no line of it can end."""
    shown = [printable(line) for line in text.splitlines()]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *shown, fence])
