"""The pages of results, from the files of runs."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import load_script
from pages import Page, write_run, write_training

from video_iresnet.config import keys_of_run
from video_iresnet.report import runs_page
from video_iresnet.report.compare import read_run
from video_iresnet.report.curves import POINTS, read_curves
from video_iresnet.report.page import run_page
from video_iresnet.report.results import read_predictions
from video_iresnet.report.strips import no_strips
from video_iresnet.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("drawn_plots")

NO_STRIPS = no_strips("the disk is elsewhere")
EIGHT = [f"class {letter}" for letter in "abcdefgh"]
HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'><svg/onload=alert(1)>", "a & b &lt;",
    "\u202eeht fo dne\u2066 \u05e9\u05dc\u05d5\u05dd", "$\\frac{1}{", "_hidden", "x" * 400, "\u7ebf",
    "{{ 7 * 7 }}{% raw %}", "#010203 id=\"a\" font-family: b sans-serif", "line\nbreak\0",
]  # fmt: skip


class Made(NamedTuple):
    """A run's page, its results.json, and the rows of its predictions.csv."""

    page: Page
    html: str
    results: dict[str, Any]
    rows: list[dict[str, str]]


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "eight", EIGHT, 12)
    write_training(folder)
    return folder


@pytest.fixture(scope="module")
def made(eight: Path) -> Made:
    with open(eight / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    html = run_page(eight, NO_STRIPS)
    return Made(Page(html), html, json.loads((eight / "results.json").read_text()), rows)


def test_accuracies(made: Made) -> None:
    page, _, results, rows = made
    wrong = sum(row["top1"] != row["label"] for row in rows)
    assert results["top1_acc"] == pytest.approx(100 - 100 * wrong / 96)
    low, high = results["top1_acc_interval"]
    assert f"{results['top1_acc']:.2f} %" in page.text
    assert f"95 % interval {low:.2f} to {high:.2f}" in page.text
    assert "Protocol: 3x3 @64, clips of 8x2" in page.text
    assert "96 videos, 2 of them failed" in page.text
    assert "Tested: w.pyth, after 5 epochs, weights 0123456789abcdef." in page.text
    by_protocol = page.table("Accuracy in percent by protocol")
    assert [row[0] for row in by_protocol] == ["1x1", "2x1", "3x1", "1x3", "2x3", "3x3"]
    assert [row[1] for row in by_protocol] == ["1", "2", "3", "3", "6", "9"]
    for name, _, top1, top5 in by_protocol:
        measured = results["by_number_of_clips"][name]
        assert (top1, top5) == (f"{measured['top1_acc']:.2f}", f"{measured['top5_acc']:.2f}")
        assert results["by_views"].get(name, measured) == measured
    checks = {row[0]: row[2] for row in page.table("Accuracy in percent by the order")}
    assert checks == {"own order": f"{results['top1_acc']:.2f}"} | {
        name: f"{value['top1_acc']:.2f}" for name, value in results["temporal_checks"].items()
    }


def test_classes_and_what_they_are_taken_for(made: Made) -> None:
    page, _, _, rows = made
    counts = np.zeros((8, 8), int)
    for row in rows:
        if not row["error"]:
            counts[int(row["label"]), int(row["top1"])] += 1
    names = [f"{i} {name}" for i, name in enumerate(EIGHT)]
    heat = page.table("Numbers of videos, by class")
    assert [row[0] for row in heat] == names
    assert [list(map(int, row[1:])) for row in heat] == counts.tolist()
    for number, row in enumerate(page.table("Accuracy by class")):
        name, _, top1, top5, videos, taken_for = row
        assert (name, videos) == (names[number], "12")
        assert float(top1) == pytest.approx(100 * counts[number, number] / 12, abs=0.005)
        in_five = sum(
            row["label"] in [row[f"top{rank}"] for rank in range(1, 6)]
            for row in rows
            if int(row["label"]) == number
        )
        assert float(top5) == pytest.approx(100 * in_five / 12, abs=0.005)
        wrong = np.where(np.arange(8) == number, 0, counts[number])
        assert taken_for == (f"{names[wrong.argmax()]} ({wrong.max()})" if wrong.max() else "")
    pairs = page.table("Pairs of classes")
    totals = [int(row[4]) for row in pairs]
    assert totals == sorted(totals, reverse=True)
    assert sum(totals) == counts.sum() - np.trace(counts)
    for first, second, there, back, _ in pairs:
        i, j = names.index(first), names.index(second)
        assert (there, back) == (
            f"{counts[i, j]} of {counts[i].sum()}", f"{counts[j, i]} of {counts[j].sum()}"
        )  # fmt: skip


def test_worst_mistakes_and_failed_videos(made: Made) -> None:
    page, _, _, rows = made
    wrong = [row for row in rows if not row["error"] and row["top1"] != row["label"]]
    wrong.sort(key=lambda row: -float(row["prob1"]))
    assert len(wrong) > 12
    assert [text for level, text in page.headings if level == 3] == [row["video"] for row in wrong[:12]]
    taken = re.findall(r"Taken for (\d).*?\((.*?)\)", page.text)
    assert taken == [(row["top1"], f"{float(row['prob1']):.3f}") for row in wrong[:12]]
    assert "Their frames cannot be shown: the disk is elsewhere." in page.text
    assert page.table("2 videos that could not") == [
        [row["video"], f"{row['label']} {EIGHT[int(row['label'])]}", "cut <short>"] for row in rows[:2]
    ]


SECTIONS = [
    "Accuracy", "Number of views", "Temporal checks", "Classes", "Confusion matrix", "Most confused pairs",
    "Worst mistakes", "Training", "Failed videos", "Config and stamp",
]  # fmt: skip


@pytest.mark.parametrize("case", ["no test", "no training", "test alone", "one view", "empty", "old"])
def test_every_section_is_there(case: str, eight: Path, tmp_path: Path) -> None:
    kept = {
        "no test": ["config.yaml", "json_stats.log"],
        "empty": [],
        "test alone": ["results.json", "predictions.csv"],
    }
    for path in eight.iterdir():
        if path.is_file() and path.name in kept.get(case, [path.name]):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    if case == "no training":
        (tmp_path / "json_stats.log").unlink()
    results = json.loads((eight / "results.json").read_text())
    if case == "one view":
        results |= {"by_number_of_clips": {"1x1": results["by_views"]["1x1"]}, "temporal_checks": {}}
    if case == "old":
        for key in ("by_number_of_clips", "stamp", "top1_acc_interval", "top5_acc_interval", "class_names"):
            del results[key]
    if case in ("one view", "old"):
        (tmp_path / "results.json").write_text(json.dumps(results))
    page = Page(run_page(tmp_path, NO_STRIPS))
    assert [text for level, text in page.headings if level == 2] == SECTIONS
    says = {
        "no test": "This run has no results of a test",
        "no training": "no records of a training",
        "one view": "The test took one view of each video",
        "old": "no accuracies by number of clips",
        "test alone": "The folder holds no config.yaml",
        "empty": "The folder holds no stamp.json",
    }
    assert says[case] in page.text
    assert ("The test had no temporal checks" in page.text) == (case == "one view")


def elements_of_strangers(page: Page) -> list[str]:
    """Tags and attributes that only a name or text of a file can have brought in."""
    allowed = {"img": "data:image/jpeg;base64,", "image": "data:image/png;base64,"}
    found = [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "form", "base")]
    for tag, attributes in page.tags:
        found += [name for name in attributes if name.startswith("on")]
        source = attributes.get("src") or attributes.get("xlink:href") or ""
        if tag in allowed and not source.startswith(allowed[tag]):
            found.append(f"{tag} {source[:80]}")
        if tag == "a" and not (attributes.get("href") or "").startswith("#"):
            found.append(f"a {attributes}")
    return found


def test_hostile_names_are_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / HOSTILE[0].replace("/", "|"), HOSTILE, 6)
    config, text = folder / "config.yaml", (folder / "predictions.csv").read_text()
    config.write_text(f"{config.read_text()}# </pre><script>alert(2)</script>\n")
    (folder / "predictions.csv").write_text(
        text.replace("v_00007", "</li><script>").replace("cut", "<b>\u202e")
    )
    other = write_run(tmp_path / "_other", HOSTILE, 6, seed=1)
    write_training(other)
    write_training(folder)
    one, both = Page(run_page(folder, no_strips("<i>why</i>"))), Page(comparison(folder, other))
    for page in (one, both):
        assert not elements_of_strangers(page)
        assert "<script>alert(1)<" in page.text
        assert '"><img src=x onerror=alert(1)>' in page.text
        assert "{{ 7 * 7 }}" in page.text
        assert not any(not c.isprintable() and c not in "\n" for c in page.text if c != "\u200b")
    assert "# </pre><script>alert(2)</script>" in one.text
    assert "<i>why</i>" in one.text
    assert "_other" in both.text


def comparison(*folders: Path) -> str:
    script = load_script("tools/report.py")
    runs = [
        read_run(folder, name, keys_of_run(folder))
        for folder, name in zip(folders, script.names_of(folders), strict=True)
    ]
    return runs_page.runs_page(runs, script.decides)


@pytest.mark.parametrize("size", [2, 20, 21, 174, 400])
def test_any_number_of_classes(size: int, tmp_path: Path) -> None:
    names = [f"doing something with thing number {i}" for i in range(size)]
    folder = write_run(tmp_path, names, 3 if size < 100 else 2)
    html = run_page(folder, NO_STRIPS)
    assert len(html.encode()) < 5e6
    page = Page(html)
    images = [attributes for tag, attributes in page.tags if tag == "image"]
    assert len(images) == (3 if size > 20 else 0)
    assert (f"All {size} classes" in page.text) == (size > 20)
    if size <= 20:
        assert len(page.table("Accuracy by class")) == size
        return
    assert [image["width"] for image in images] == ["256", "256", str(size)]  # a pixel a cell, and two scales
    table = page.table("All classes")
    assert [row[0] for row in table] == [f"{i} {name}" for i, name in enumerate(names)]
    accuracies = sorted(float(row[2]) for row in table)
    assert [float(row[2]) for row in page.table("The 20 least")] == accuracies[:20]
    assert [float(row[2]) for row in page.table("The 20 most")] == accuracies[:-21:-1]
    mixed_up = page.table("Numbers of videos of the classes that are mixed up most")
    in_pairs = {name for row in page.table("Pairs") for name in row[:2]}
    assert len(mixed_up) == min(len(in_pairs), 20)
    numbers = [int(row[0].split()[0]) for row in mixed_up]
    assert numbers == sorted(numbers)
    assert {row[0] for row in mixed_up} <= in_pairs


def test_the_same_files_give_the_same_bytes(eight: Path, made: Made) -> None:
    assert run_page(eight, NO_STRIPS) == made.html


def test_ids_are_unique(eight: Path, made: Made, tmp_path: Path) -> None:
    many = write_run(tmp_path / "many", [f"c {i}" for i in range(30)])
    for html in (made.html, run_page(many, NO_STRIPS), comparison(eight, many)):
        page = Page(html)
        assert len(set(page.ids)) == len(page.ids)
        wanted = re.findall(r'(?:href="|url\()#([^")]+)', html)
        assert {*wanted} <= {*page.ids}
        labels = [attributes["aria-labelledby"] for tag, attributes in page.tags if tag == "section"]
        assert {*labels} <= {*page.ids}


def test_curves(eight: Path, tmp_path: Path) -> None:
    curves = read_curves(eight / "json_stats.log")
    assert curves["train_epoch loss"] == ([1, 2, 3], [2, 1, pytest.approx(2 / 3)])
    epochs, losses = curves["train_iter loss"]
    assert epochs == [0.5, 1, 1.5, 2, 2.5, 3]
    assert losses[0] == pytest.approx(4 + 0.004)  # of the epoch that was done again
    assert curves["val_epoch top1_err"] == ([1, 2, 3], [90, 45, 30])
    assert read_curves(tmp_path / "none") == {}
    lines = [
        f'{{"_type": "train_iter_", "epoch": "1/1", "iter": "{i}/1000", "lr": {i}}}' for i in range(1, 1001)
    ]
    odd = [
        "[1]",
        "nothing",
        '{"_type": "x"}',
        '{"epoch": "a/b", "y": 1}',
        '{"epoch": "1/2", "iter": "1/0", "z": 1}',
    ]
    (tmp_path / "long").write_text("\n".join([*lines, *odd]))
    epochs, rates = read_curves(tmp_path / "long")["train_iter lr"]
    assert len(rates) <= POINTS
    assert rates[:2] == [2, 5]
    assert np.mean(rates[:-1]) == pytest.approx(500)
    assert epochs[0] == pytest.approx(0.002)


def test_predictions_are_read_as_written(eight: Path) -> None:
    videos = read_predictions(eight / "predictions.csv")
    assert (videos.predictions.classes[:2] == -1).all()
    assert np.isnan(videos.predictions.probabilities[:2]).all()
    assert videos.errors[:3] == ["cut <short>", "cut <short>", ""]
    assert videos.predictions.classes.shape == (96, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 3}, "8 class names for 3 classes"),
        ({"num_classes": 0, "class_names": []}, "0 class names for 0 classes"),
        ({"num_classes": 3, "class_names": []}, "predictions.csv has other videos or classes"),
        ({"num_videos": 95}, "predictions.csv has other videos or classes"),
        ({"by_views": 3}, "is no results.json of a test"),
        ({"by_number_of_clips": {"3by3": {"top1_acc": 1, "top5_acc": 2}}}, "is no results.json of a test"),
        ({"by_number_of_clips": {"0x3": {"top1_acc": 1, "top5_acc": 2}}}, "a protocol 0x3"),
        ({"temporal_checks": {"reversed": 5}}, "is no results.json of a test"),
        ({"top5_acc": "x"}, "is no results.json of a test"),
        ({"top1_acc_interval": [1]}, "is no results.json of a test"),
    ],
)
def test_files_that_do_not_fit(change: dict[str, object], message: str, eight: Path, tmp_path: Path) -> None:
    results = json.loads((eight / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(results | change))
    (tmp_path / "predictions.csv").write_bytes((eight / "predictions.csv").read_bytes())
    with pytest.raises(InputError, match=message):
        run_page(tmp_path, NO_STRIPS)
