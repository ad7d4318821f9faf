"""The contact sheet shows exactly what the network receives; the benchmark measures what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEMO, load_script, shown_numbers, write_video
from PIL import Image

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.runtime.errors import InputError
from video_iresnet.speed.data import plain_clip, plain_sample

MARGIN, LINE = 4, 14


def cell(sheet: Image.Image, row: int, column: int, size: int) -> np.ndarray:
    """The lower half of a frame of the sheet; its number stands in the upper one."""
    top, left = MARGIN + LINE + row * (size + LINE + 2 * MARGIN), MARGIN + column * (size + MARGIN)
    return np.asarray(sheet)[top + size // 2 : top + size, left : left + size]


def test_a_contact_sheet_shows_what_the_network_receives(
    shapes: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show = load_script("tools/show_clips.py").main
    out = tmp_path / "clips.png"
    options = [*small, "AUG.RE_PROB", "0.5", "DATA.RANDOM_FLIP", "True"]
    assert show(["--cfg", DEMO, "--out", str(out), "--samples", "5", *options]) == 0
    assert "5 clips as the network receives them" in capsys.readouterr().out
    cfg = load_config(DEMO, options)
    records = build.build_records(cfg, "DATA.TRAIN_LIST")
    data = build.build_training_data(cfg, records)
    keys = next(iter(build.build_batches(cfg, len(records))))
    sheet = Image.open(out)
    for row, key in enumerate(keys[:5]):
        clip = data[key].clips[0].permute(1, 2, 3, 0).numpy()
        for column in range(4):
            assert np.array_equal(cell(sheet, row, column, 32), clip[column, 16:])


def test_the_sheet_names_the_source_frames(small: list[str], tmp_path: Path) -> None:
    """The numbers noted for a clip are those that its frames show."""
    tool = load_script("tools/show_clips.py")
    write_video(tmp_path / "a.mp4", 60, size=(48, 64))
    (tmp_path / "list.csv").write_text("a.mp4 3\n")
    overrides = [
        *small,
        "DATA.PATH_TO_DATA_DIR",
        str(tmp_path),
        "DATA.TRAIN_LIST",
        "list.csv",
        "DATA.TEST_LIST",
        "list.csv",
        "DATA.CLASS_NAMES",
        "",
        "TRAIN.BATCH_SIZE",
        "1",
    ]
    cfg = load_config(
        DEMO,
        [
            *overrides,
            "DATA.TRAIN_CROP_SIZE",
            "48",
            "DATA.TRAIN_JITTER_SCALES",
            "[48,48]",
            "DATA.TEST_CROP_SIZE",
            "48",
        ],
    )
    (row,) = tool.training_rows(cfg, 4, mixed=False)
    rows = tool.test_rows(cfg, 6)
    assert [title.split("  -  ")[1] for title in (row.title for row in rows)] == [
        f"clip {c}, crop {s}" for c in (1, 2) for s in (1, 2, 3)
    ]
    assert rows[1].indices == [0, 2, 4, 6]
    middle = torch.from_numpy(np.concatenate([np.asarray(r.clip) for r in rows[::3]]))
    assert len(row.indices) == 4
    padded = torch.zeros(len(middle), 48, 64, 3, dtype=torch.uint8)
    padded[:, :, :48] = middle  # the first crop shows the first 48 columns, and so the lowest six bits
    assert shown_numbers(padded) == [*rows[0].indices, *rows[3].indices]


def test_mixed_clips_name_their_fractions(shapes: Path, small: list[str], tmp_path: Path) -> None:
    tool = load_script("tools/show_clips.py")
    cfg = load_config(
        DEMO, [*small, "MIXUP.ENABLE", "True", "MIXUP.CUTMIX_ALPHA", "0", "TRAIN.BATCH_SIZE", "8"]
    )
    rows = tool.training_rows(cfg, 3, mixed=True)
    assert len(rows) == 3
    assert all(re.match(r"[01]\.\d\d x \d ", row.title) for row in rows)
    plain = tool.training_rows(cfg, 3, mixed=False)
    assert not torch.equal(rows[0].clip, plain[0].clip)


def test_unreadable_videos_are_named(shapes: Path, small: list[str], tmp_path: Path) -> None:
    tool = load_script("tools/show_clips.py")
    (tmp_path / "empty.mp4").touch()
    whole = (shapes / "train.csv").read_text().split()[0]
    more = ["DATA.TRAIN_LIST", str(tmp_path / "list.csv"), "TRAIN.BATCH_SIZE", "2"]
    (tmp_path / "list.csv").write_text(f"{tmp_path}/empty.mp4 0\n{shapes}/{whole} 1\n")
    titles = [row.title for row in tool.training_rows(load_config(DEMO, [*small, *more]), 2, mixed=False)]
    assert sum("in the place of" in title and "empty.mp4: Invalid data" in title for title in titles) == 1
    (tmp_path / "list.csv").write_text(f"{tmp_path}/empty.mp4 0\n" * 2)
    with pytest.raises(
        InputError, match=r"none of the videos tried of .* can be read, the first because Invalid data"
    ):
        tool.training_rows(load_config(DEMO, [*small, *more]), 2, mixed=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [("DATA.TRAIN_LIST gone.csv", "gone.csv"), ("AUG.REPROB 1", "unknown key AUG.REPROB")],
)
def test_mistakes_are_one_clear_line(
    overrides: str, message: str, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show = load_script("tools/show_clips.py").main
    assert show(["--cfg", DEMO, "--out", str(tmp_path / "a.png"), *small, *overrides.split()]) == 1
    assert re.fullmatch(f"error: [^\n]*{message}[^\n]*\n", capsys.readouterr().err)
    assert not (tmp_path / "a.png").exists()


def test_the_plain_way_reads_the_same_frames(tmp_path: Path) -> None:
    """The reference of the benchmark is a fair one: it reads the frames that it is asked for."""
    path = str(write_video(tmp_path / "a.mp4", 60, gop=12))
    for indices in ([0, 5, 10], [31, 33, 59], [58, 59, 59]):
        assert shown_numbers(plain_clip(path, indices)) == indices
    sample = plain_sample(path, [3, 4], 96, 64, (0.5, 1.0))
    assert sample.shape == (3, 2, 64, 64)
    assert sample.dtype == torch.float32


def test_benchmark_of_the_data(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "a.mp4", 40, size=(96, 128))
    benchmark = load_script("tools/benchmark.py")
    assert (
        benchmark.main(["data", "--cfg", DEMO, "--videos", str(tmp_path / "a.mp4"), "--repeats", "2", *small])
        == 0
    )
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| a.mp4")
    ]
    assert [row[1] for row in rows[:2]] == ["here", "here, transcoded"]
    assert [row[1:3] for row in rows[2:]] == [
        [what, way] for what in ("sample 4x2", "test 2x3") for way in ("plain", "here", "here, transcoded")
    ]
    for row in rows[:2]:
        assert float(row[6]) == pytest.approx(1000 / sum(map(float, row[2:6])), rel=0.02)
    (tmp_path / "b.mp4").write_text("no video")
    bad = ["--videos", str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"), "--repeats", "1"]
    assert benchmark.main(["data", "--cfg", DEMO, *bad, *small]) == 1
    assert re.fullmatch(
        r"error: --videos: \S*b.mp4 cannot be read; [^\n]*", capsys.readouterr().err.splitlines()[-1]
    )
    assert benchmark.main(["data", "--cfg", DEMO, "--videos", "gone.mp4", *small]) == 1
    assert capsys.readouterr().err == "error: --videos: gone.mp4 does not exist; correct it\n"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc")
def test_benchmark_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_script("tools/benchmark.py").main(["memory", "--records", "3000"]) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert rows[2:] == ["packed", "list"]


TOOLS = {
    "benchmark": ("show", ["memory"]),
    "compare": ("report", ["a", "b"]),
    "complexity": ("table", ["--cfg", DEMO]),
    "depth": ("compare", []),
    "export": ("export", ["--checkpoint", "a.pyth", "--out", "b"]),
    "show_clips": ("show", ["--cfg", DEMO]),
}


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped[^\n]*"),
        (OSError(28, "No space left", "a.png"), 1, "error: [^\n]*"),
    ],
)
def test_every_tool_ends_in_one_line(
    name: str,
    error: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    function, arguments = TOOLS[name]
    tool = load_script(f"tools/{name}.py")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tool, function, fail)
    assert tool.main(arguments) == status
    assert re.fullmatch(f"{line}\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "--cfg", DEMO, "--repeats", "0"], "--repeats is 0; expected 1 or more"),
        (["memory", "--records", "10"], "--records is 10; expected 500 or more"),
    ],
)
def test_a_benchmark_of_nothing_is_refused(
    arguments: list[str], message: str, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = small if arguments[0] == "data" else []
    assert load_script("tools/benchmark.py").main([*arguments, *more]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
