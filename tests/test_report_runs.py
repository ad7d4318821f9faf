"""The pages that runs and tools/report.py write, with frames of the videos."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import DEMO, WITH_CHECKS, RunNet, load_script, write_video
from pages import Page, write_run
from PIL import Image

from video_iresnet import build, run
from video_iresnet.config import keys_of_run, load_config
from video_iresnet.data.dataset import ViewDataset
from video_iresnet.data.decode import open_video
from video_iresnet.data.functional import cut
from video_iresnet.data.records import Record
from video_iresnet.data.sampling import DenseSampler
from video_iresnet.report.compare import read_run
from video_iresnet.report.strips import FRAMES, SIZE, strips_of

pytestmark = pytest.mark.usefixtures("drawn_plots")


@pytest.fixture(scope="module")
def tested(small: list[str], tmp_path_factory: pytest.TempPathFactory, run_net: RunNet) -> Path:
    """A run of one epoch, whose test has a video that cannot be read."""
    folder = tmp_path_factory.mktemp("runs")
    data = Path(load_config(DEMO, small).DATA.PATH_TO_DATA_DIR)
    rows = (data / "test.csv").read_text().splitlines()
    (folder / "test.csv").write_text("".join(f"{row}\n" for row in [*rows, f"gone.mp4 {1}"]))
    short = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "DATA.TEST_LIST", str(folder / "test.csv")]
    assert run_net(*small, *WITH_CHECKS, *short, "OUTPUT_DIR", str(folder / "a")) == 0
    return folder / "a"


def strips(html: str) -> list[list[np.ndarray]]:
    """The frames of each strip of a page."""
    found = re.findall(r'<div class="strip".*?</div>', html, re.DOTALL)
    return [
        [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            for data in re.findall(r"base64,([^\"]+)", strip)
        ]
        for strip in found
    ]


def test_a_test_writes_its_page(tested: Path, small: list[str]) -> None:
    html = (tested / "report.html").read_text()
    page = Page(html)
    assert ("Results of a") in page.text
    assert page.table("1 videos that could not")[0][0] == "gone.mp4"
    assert f"page: {tested / 'report.html'}" in (tested / "stdout.log").read_text()
    labels = [attributes.get("aria-label") or "" for tag, attributes in page.tags if tag == "svg"]
    assert any(label.startswith("loss by epoch") for label in labels)
    names = [text for level, text in page.headings if level == 3]
    shown = strips(html)
    assert len(names) == len(shown) > 0
    cfg = load_config(DEMO, small)
    data = build.build_test_data(cfg, build.build_records(cfg, "DATA.TEST_LIST"))
    (number,) = (i for i, record in enumerate(data.records) if record.name == names[0])
    views = data[number]
    seen = cut(views.frames[views.clips[0]], views.crops[1], data.crop_size).numpy()
    assert len(shown[0]) == cfg.DATA.NUM_FRAMES == 4
    for frame, expected in zip(shown[0], seen, strict=True):
        assert np.abs(frame.astype(int) - expected).mean() < 4  # JPEG


def test_a_page_that_cannot_be_written_ends_no_test(
    tested: Path, small: list[str], tmp_path: Path, run_net: RunNet
) -> None:
    (tmp_path / "report.html").mkdir()
    weights = next(tested.glob("checkpoints/check*"))
    only_test = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", str(weights)]
    assert run_net(*small, *only_test, "OUTPUT_DIR", str(tmp_path)) == 0
    log = (tmp_path / "stdout.log").read_text()
    assert re.search(rf"\[WARNING\] run.py: +\d+: cannot write {tmp_path}/report.html: Is a directory", log)
    assert (tmp_path / "results.json").exists()


def test_other_errors_of_a_page_are_seen(
    tested: Path, small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Path:
        raise ZeroDivisionError

    monkeypatch.setattr(run, "write_page", broken)
    weights = next(tested.glob("checkpoints/check*"))
    only_test = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", str(weights)]
    with pytest.raises(ZeroDivisionError):
        run_net(*small, *only_test, "OUTPUT_DIR", str(tmp_path))


def test_the_tool_makes_the_same_page_again(tested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tested / "report.html"
    before = path.read_bytes()
    path.unlink()
    assert load_script("tools/report.py").main([str(tested)]) == 0
    assert path.read_bytes() == before
    assert capsys.readouterr().out.endswith(f"\n{path}: {len(before) / 1e6:.2f} MB\n")


def test_frames_that_are_no_longer_there(tested: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(tested, folder)
    config = (folder / "config.yaml").read_text()
    (tested.parent / "other.csv").write_text("x.mp4 0\n" * 12)
    for old, new, why in (
        ("", "", ""),
        ("test.csv", "gone.csv", "cannot read .*gone.csv: No such file or directory"),
        ("test.csv", "other.csv", "all 12|12 of the 12 videos"),
        (
            "NUM_FRAMES: 4",
            "NUM_FRAMES: 8",
            "config.yaml is of a test with other clips, 2x3 @32, clips of 8x2",
        ),
    ):
        (folder / "config.yaml").write_text(config.replace(old, new) if old else config)
        out = tmp_path / "page.html"
        assert load_script("tools/report.py").main([str(folder), "--out", str(out)]) == 0
        page = Page(out.read_text())
        assert bool(strips(out.read_text())) == (not old)
        assert ("Their frames cannot be shown" in page.text) == bool(old)
        assert re.search(why, page.text)


def dataset(folder: Path, num_frames: int, num_clips: int = 3, num_crops: int = 3) -> ViewDataset:
    """A data set of a video of 40 numbered frames and one that cannot be read."""
    path = write_video(folder / "a.mp4", 40, size=(120, 240))
    (folder / "b.mp4").write_bytes(b"no video")
    records = [Record("a.mp4", str(path), 0), Record("b.mp4", str(folder / "b.mp4"), 0)]
    return ViewDataset(
        records, sampler=DenseSampler(2), open_video=open_video, num_frames=num_frames, num_clips=num_clips,
        num_crops=num_crops, short_side=112, crop_size=100,
    )  # fmt: skip


@pytest.mark.parametrize(("num_frames", "thinned"), [(4, range(4)), (16, (0, 2, 4, 6, 9, 11, 13, 15))])
def test_a_strip_is_of_the_centre_view(num_frames: int, thinned: list[int], tmp_path: Path) -> None:
    data = dataset(tmp_path, num_frames)
    strip = strips_of(data)(0, "a.mp4")
    views = data[0]
    frames = views.frames[[views.clips[1][i] for i in thinned]]
    seen = cut(frames, views.crops[1], 100).numpy()
    assert len(strip.frames) == min(num_frames, FRAMES) == len(strip.indices)
    start = (40 - (2 * num_frames - 1)) // 2
    assert strip.indices == [pytest.approx(start + 2 * i, abs=1) for i in thinned]
    for file, expected in zip(strip.frames, seen, strict=True):
        picture = Image.open(io.BytesIO(file))
        assert picture.size == (SIZE, SIZE)
        small = Image.fromarray(expected).resize((SIZE, SIZE), Image.Resampling.BOX)
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(small)).mean() < 6


def test_strips_that_cannot_be_read(tmp_path: Path) -> None:
    read = strips_of(dataset(tmp_path, 4))
    assert read(0, "other.mp4").problem == read(2, "a.mp4").problem == "the list has changed since the test"
    assert read(1, "b.mp4").problem
    assert not read(1, "b.mp4").frames


def test_a_comparison(tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"class {i}" for i in range(25)]
    one, two = write_run(tmp_path / "one", names), write_run(tmp_path / "two", names, seed=1)
    monkeypatch.chdir(tmp_path)
    script = load_script("tools/report.py")
    assert script.main(["one", "two", str(tested)]) == 0
    page = Page((tmp_path / "comparison.html").read_text())
    assert [text for level, text in page.headings if level == 2] == [
        "Results", "Pairs", "Number of views", "Classes", "Training", "Keys that differ", "What else differs"
    ]  # fmt: skip
    results = page.table("Accuracy in percent with")
    assert [row[0] for row in results] == ["one", "two", "a"]
    compare = load_script("tools/compare.py")
    for row, folder in zip(results, (one, two, tested), strict=True):
        texts = compare.result_row(
            read_run(folder, row[0], keys_of_run(folder)),
            ["top1_acc", "top5_acc"],
            ["reversed", "frozen", "shuffled"],
        )
        assert [text if text else "-" for text in row] == texts
    keys = {row[0]: row[1:] for row in page.table("Keys of config.yaml")}
    assert keys["DATA.NUM_FRAMES"] == ["training and test", "8", "8", "4"]
    assert "OUTPUT_DIR" not in keys
    pair = compare.compare_pair(
        *(read_run(folder, folder.name, keys_of_run(folder)) for folder in (one, two))
    )
    assert f"{pair['meaning']}." in page.text
    assert "one and a cannot be compared: they have no video in common" in page.text
    assert "Their classes are others: a." in page.text
    rows = page.table("Top-1 in percent by class")
    differences = [float(row[3]) for row in rows]
    assert len(rows) in (20, 25)
    assert differences == sorted(differences, reverse=True)
    assert all(abs(abs(float(row[1]) - float(row[2])) - float(row[3])) < 0.011 for row in rows)


def test_runs_without_a_test_are_compared(tested: Path, tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        shutil.copy(tested / "config.yaml", tmp_path / name)
    out = tmp_path / "out.html"
    assert (
        load_script("tools/report.py").main([str(tmp_path / "x"), str(tmp_path / "y"), "--out", str(out)])
        == 0
    )
    text = Page(out.read_text()).text
    for words in (
        "Without results of a test: x, y.",
        "Fewer than two of the runs were tested.",
        "The configs are equal.",
        "No run has accuracies by number of views.",
        "None of the runs was tested.",
        "The folders hold no records of a training.",
        "Code, libraries, machine, lists and weights are equal.",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("NONE", "NONE holds no config.yaml; name the OUTPUT_DIR of a run"),
        ("a --out mine.html", "mine.html is there and is no page of this script; name another --out"),
        ("a a --out mine.html", "mine.html is there and is no page of this script; name another --out"),
        ("a --out NONE/x.html", "cannot write NONE/x.html: No such file or directory"),
        ("a a --out a", "cannot read a: Is a directory"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_run(Path("a"), ["x", "y"])
    Path("mine.html").write_text("<html>my own</html>")
    assert load_script("tools/report.py").main(arguments.split()) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert Path("mine.html").read_text() == "<html>my own</html>"


def test_a_page_is_not_half_written(tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that fails to be made leaves the one that is there."""
    shutil.copytree(tested, tmp_path / "a")
    (tmp_path / "a/predictions.csv").write_text("video,label\nx,1\n")
    before = (tmp_path / "a/report.html").read_bytes()
    assert load_script("tools/report.py").main([str(tmp_path / "a")]) == 1
    assert (tmp_path / "a/report.html").read_bytes() == before
