"""Runs without a network for the tests of pages, and what a page says: its tables, sections and elements."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from video_iresnet.config import default_config
from video_iresnet.data.records import Record
from video_iresnet.engine.aggregate import results
from video_iresnet.engine.views import FORMAT, VideoOutputs, ViewStore
from video_iresnet.report.results import write_predictions, write_results
from video_iresnet.runtime.stamp import add_stamp

CLIPS, CROPS = 3, 3


def write_run(
    folder: Path, class_names: Sequence[str], videos_per_class: int = 3, *, seed: int = 0, failed: int = 2
) -> Path:
    """Write what a test of made-up views leaves in a folder, through the code of a test, with two temporal
    checks; the first `failed` videos failed. Class 2i is mixed up with class 2i + 1.
    """
    rng = np.random.default_rng(seed)
    size = len(class_names)
    labels = np.random.default_rng(0).permutation(np.arange(size * videos_per_class) % size)
    records = [Record(f"videos/v_{i:05d}.mp4", "", int(label)) for i, label in enumerate(labels)]
    store = ViewStore(folder / "views", {
        "format": FORMAT, "seed": seed, "num_videos": len(labels), "num_classes": size, "num_clips": CLIPS,
        "num_crops": CROPS, "dtype": "float32", "protocol": f"{CLIPS}x{CROPS} @64, clips of 8x2",
        "checks": ["reversed", "frozen"], "class_names": list(class_names),
    })  # fmt: skip
    videos = []
    for i, label in enumerate(labels):
        outputs = {}
        for order, strength in (("", 3.0), ("reversed", 1.5), ("frozen", 0.0)):
            logits = rng.normal(size=(CLIPS, CROPS, size)) + rng.normal(size=size)
            logits[..., label] += strength
            logits[..., (label ^ 1) % size] += strength * 0.7
            powers = np.exp(logits)
            total = powers.sum(-1, keepdims=True)
            outputs[order] = {"probabilities": powers / total, "normalizer": np.log(total[..., 0])}
        is_failed = i < failed
        videos.append(VideoOutputs(i, {} if is_failed else outputs, "cut <short>" if is_failed else ""))
    store.append(0, videos, records)
    numbers, outcome = results([store])
    *_, protocol = numbers["by_views"]
    stamp = {"code": "0.1.0", "weights": "0123456789abcdef", "test_list": "some records"}
    more = {"class_names": list(class_names), "checkpoint": "w.pyth", "epoch": 4, "seconds": 1.0}
    write_predictions(folder / "predictions.csv", outcome, outcome.predictions[protocol])
    write_results(folder / "results.json", numbers | more | {"stamp": stamp})
    (folder / "config.yaml").write_text(default_config().dump())
    add_stamp(folder / "stamp.json", {"code": "0.1.0", "torch": "2.14"})
    return folder


def write_training(folder: Path, epochs: int = 3) -> None:
    """Write the records of a training, the first epoch twice, and a line that was cut off."""
    lines = []
    for epoch in [1, *range(1, epochs + 1)]:
        for step in (5, 10):
            done = epoch - 1 + step / 10
            lines.append({"_type": "train_iter_", "epoch": f"{epoch}/{epochs}", "iter": f"{step}/10",
                          "lr": 0.1 / done, "loss": 2 / done + len(lines) / 1000})  # fmt: skip
        lines.append({"_type": "train_epoch", "epoch": f"{epoch}/{epochs}", "loss": 2 / epoch,
                      "top1_err": 80 / epoch, "top5_err": 40 / epoch})  # fmt: skip
        lines.append({"_type": "val_epoch", "epoch": f"{epoch}/{epochs}", "top1_err": 90 / epoch,
                      "top5_err": 50 / epoch})  # fmt: skip
    text = "".join(f"json_stats: {json.dumps(line)}\n" for line in lines)
    (folder / "json_stats.log").write_text(text + 'json_stats: {"_type": "train_it')


class Page(HTMLParser):
    """What a page holds: `tables` are lists of rows of cells by their captions, `headings` their texts with
    their levels, `tags` all tags with their attributes, `text` what is visible.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[tuple[int, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.text = ""
        self._rows: list[list[str]] = []
        self._caption = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.ids += [name for name in [attributes.get("id")] if name]
        self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append((int(tag[1]), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.tables[self._caption] = self._rows
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"style", "title"} & set(self._open):
            return
        self.text += data
        for tag in reversed(self._open):
            if tag in ("td", "th"):
                self._rows[-1][-1] += data
                return
            if tag == "caption":
                self._caption += data
                return
            if tag in ("h1", "h2", "h3"):
                level, text = self.headings[-1]
                self.headings[-1] = level, text + data
                return

    def table(self, start: str) -> list[list[str]]:
        """The rows of the table whose caption begins like this, without that of its headings."""
        (rows,) = (rows for caption, rows in self.tables.items() if caption.startswith(start))
        return rows[1:]
