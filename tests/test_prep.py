"""data_prep/: official annotations and folders of videos -> lists that read_records gives back; nothing is
overwritten, a kill costs nothing.
"""

from __future__ import annotations

import contextlib
import csv
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import foreign
import numpy as np
import pytest
import simplejpeg
import torch
from conftest import ROOT, RunNet, load_script, shown_numbers, start, write_video
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from video_iresnet.data.records import (
    Record,
    missing_videos,
    read_class_names,
    read_frame_list,
    read_json_labels,
    read_records,
    read_tsm_list,
)
from video_iresnet.prep import lists
from video_iresnet.prep.frames import Extracted, FrameJob, extract_frames, resampled
from video_iresnet.runtime.errors import InputError

Script = Callable[..., tuple[int, str, str]]


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Script:
    """A script's main in this process: (exit code, what it printed, its errors)."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = load_script(f"data_prep/{name}.py").main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def touch(folder: Path, *names: str, data: bytes = b"video") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def listed(path: Path, num_classes: int = 400) -> list[tuple[str, int]]:
    return [
        (record.name, record.label) for record in read_records(str(path), root="", num_classes=num_classes)
    ]


def one_line(error: str, *words: str) -> bool:
    return error.startswith("error: ") and error.count("\n") == 1 and all(word in error for word in words)


# Lists


@settings(deadline=None)  # other programs may have the cores
@given(
    st.lists(
        st.tuples(
            st.text(st.sampled_from("ab1 ,;\t\"'-\ufeff\u3000%"), min_size=1).filter(
                lambda name: name.splitlines() == [name]
            ),
            st.integers(0, 7),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_every_path_survives_a_list(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("lists") / "list.csv"
    lists.write_list(path, entries)
    assert listed(path, 8) == entries
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert listed(path, 8) == entries


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["a.mp4"], "a.mp4 3"),
        (["a b.mp4", "c"], "a b.mp4,3"),
        (["a, b.mp4"], "a, b.mp4\t3"),
        ([" a.mp4"], '" a.mp4",3'),
    ],
)
def test_the_separator_is_in_no_path(tmp_path: Path, names: list[str], line: str) -> None:
    lists.write_list(tmp_path / "list.csv", [(name, 3) for name in names])
    assert (tmp_path / "list.csv").read_text().splitlines()[0] == line


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a\nb.mp4", "line break"), ("a\u2028b.mp4", "line break"), ("a\udcff.mp4", "not UTF-8")],
)
def test_names_that_no_list_can_hold(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"^[^\n]*{reason}[^\n]*; rename it$"):
        lists.write_list(tmp_path / "list.csv", [(name, 0)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "names", [["up", "down left"], ["1 left", "2 right"], ["7"], ["10 pin bowling", "skiing"]]
)
def test_class_names_survive(tmp_path: Path, names: list[str]) -> None:
    lists.write_class_names(tmp_path / "classes.txt", names)
    classes = read_class_names(str(tmp_path / "classes.txt"))
    assert (list(classes.names), list(classes.numbers)) == (names, list(range(len(names))))


def test_other_content_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    lists.write_list(path, [("a", 0), ("b", 1)])
    before = path.stat().st_mtime_ns
    lists.write_list(path, [("a", 0), ("b", 1)])
    assert path.stat().st_mtime_ns == before
    for other in ([("a", 0)], [("a", 0), ("b", 2)], [("a", 0), ("b", 1), ("c", 1)]):
        with pytest.raises(
            InputError,
            match=r"list.csv exists with other content and is not overwritten; move it away, "
            "or name another --out",
        ):
            lists.write_list(path, other)
    assert path.read_text() == "a 0\nb 1\n"


def test_videos_are_found_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "b/x.webm", "a.MP4", "c d/e/y.mkv", "notes.txt", "b/.hidden.mp4", ".partial/z.mp4")
    touch(tmp_path, "b/empty.mp4", data=b"")
    (tmp_path / "c d/loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    found = lists.find_videos(tmp_path, 3)
    assert found.videos == ["a.MP4", "b/x.webm", "c d/e/y.mkv", "link/x.webm"]
    assert found.empty == ["b/empty.mp4", "link/empty.mp4"]
    assert found.others == ["gone.mp4", "notes.txt"]


# Kinetics


def kinetics_csv(path: Path, *rows: str, header: str = "label,youtube_id,time_start,time_end,split") -> Path:
    path.write_text("\r\n".join([header, *rows]) + "\r\n")
    return path


def test_kinetics_finds_every_naming(tmp_path: Path, script: Script) -> None:
    """With times, with the id alone where it stands for one segment, flat and in folders with underscores,
    with two endings.
    """
    raw, out = tmp_path / "raw", tmp_path / "out"
    rows = [f"{label},{video},{begin},{begin + 10},val" for label, video, begin in [
        ("riding a bike", "-aaaaaaaaaa", 12),
        ("riding a bike", "twice______", 5),
        ("riding a bike", "twice______", 40),
        ("abseiling", "bbbbbbbbbbb", 0),
        ("abseiling", "ccccccccccc", 100),
        ("abseiling", "empty______", 1),
        ("zumba", "gone_______", 1),
    ]]  # fmt: skip
    annotations = kinetics_csv(tmp_path / "val.csv", *rows, "", "zumba,trained____,1,11,train")
    touch(
        raw,
        "riding_a_bike/-aaaaaaaaaa_000012_000022.mp4",
        "twice______.mp4",
        "x/twice_______000040_000050.mkv",
        "bbbbbbbbbbb.webm",
    )
    touch(raw, "abseiling/ccccccccccc_000100_000110.mp4.mkv", "trained____.mp4", "readme.txt")
    touch(raw, "empty______.mp4", data=b"")
    code, text, error = script(
        "kinetics", "--videos", raw, "--annotations", annotations, "--split", "val", "--out", out
    )
    assert (code, error) == (0, "")
    assert listed(out / "val.csv", 3) == [
        (str(raw / "riding_a_bike/-aaaaaaaaaa_000012_000022.mp4"), 1),
        (str(raw / "x/twice_______000040_000050.mkv"), 1),
        (str(raw / "bbbbbbbbbbb.webm"), 0),
        (str(raw / "abseiling/ccccccccccc_000100_000110.mp4.mkv"), 0),
    ]
    assert not missing_videos(read_records(str(out / "val.csv"), root=str(out), num_classes=3))
    assert (out / "classes.txt").read_text() == "abseiling\nriding a bike\nzumba\n"
    assert "val: 4 of 7 videos are there" in text
    assert "1 empty ones" in text
    missing = list(csv.DictReader((out / "val_missing.csv").read_text().splitlines()))
    assert [row["youtube_id"] for row in missing] == ["twice______", "empty______", "gone_______"]
    assert missing[0] == {
        "label": "riding a bike",
        "youtube_id": "twice______",
        "time_start": "5",
        "time_end": "15",
        "split": "val",
    }
    assert [line.split() for line in (out / "val_shortfall.txt").read_text().splitlines()[2:]] == [
        ["zumba", "1", "1", "100.0"],
        ["abseiling", "3", "1", "33.3"],
        ["riding", "a", "bike", "3", "1", "33.3"],
    ]
    assert "zumba" in text


def test_kinetics_again_with_more_videos(tmp_path: Path, script: Script) -> None:
    """The same run changes nothing; a longer list is refused, and goes to another folder."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    annotations = kinetics_csv(
        tmp_path / "val.csv",
        "b,11111111111,1,11",
        "a,22222222222,1,11",
        header="label,youtube_id,time_start,time_end",
    )
    touch(raw, "11111111111.mp4")
    command = ("kinetics", "--videos", raw, "--annotations", annotations, "--split", "val", "--out")
    assert script(*command, out)[0] == 0
    before = (out / "val.csv").stat().st_mtime_ns
    assert script(*command, out)[0] == 0
    assert (out / "val.csv").stat().st_mtime_ns == before
    touch(raw, "22222222222.mp4")
    code, _, error = script(*command, out)
    assert code == 1
    assert one_line(error, "val.csv exists with other content", "another --out")
    assert script(*command, tmp_path / "new")[0] == 0
    assert len(listed(tmp_path / "new/val.csv")) == 2
    # What was missing, as annotations: the report must not overwrite them.
    touch(tmp_path / "new", "val_missing.csv", data=(out / "val_missing.csv").read_bytes())
    code, _, error = script(
        *command[:4],
        tmp_path / "new/val_missing.csv",
        *command[5:],
        tmp_path / "new",
        "--class-names",
        out / "classes.txt",
    )
    assert one_line(error, "val_missing.csv is read and would be overwritten")
    assert (tmp_path / "new/val_missing.csv").read_bytes() == (out / "val_missing.csv").read_bytes()


def test_kinetics_two_videos_of_one_name(tmp_path: Path, script: Script) -> None:
    """The one in the folder of the class is taken, or the first; it is said."""
    annotations = kinetics_csv(
        tmp_path / "official.csv", "jumping jacks,11111111111,1,11,val", "b,22222222222,1,11,val"
    )
    touch(
        tmp_path / "raw",
        "archery/11111111111.mp4",
        "jumping_jacks/11111111111.mp4",
        "z/22222222222.mp4",
        "y/22222222222.mkv",
    )
    code, text, _ = script(
        "kinetics",
        "--videos",
        tmp_path / "raw",
        "--annotations",
        annotations,
        "--split",
        "val",
        "--out",
        tmp_path,
    )
    assert code == 0
    assert [name for name, _ in listed(tmp_path / "val.csv")] == [
        "raw/jumping_jacks/11111111111.mp4",
        "raw/y/22222222222.mkv",
    ]
    assert (
        "2 names belong to several videos; the first is 11111111111: took jumping_jacks/11111111111.mp4, not "
        "archery/11111111111.mp4\n" in text
    )


def test_kinetics_names_without_leading_zeros(tmp_path: Path, script: Script) -> None:
    """An id may itself look as if it ended in times."""
    rows = ["a,11111111111,10,20,val", "a,xxxxx_10_20,1,11,val", "a,yyyyyyyyyyy,0,10,val"]
    annotations = kinetics_csv(tmp_path / "official.csv", *rows)
    touch(tmp_path / "raw", "11111111111_10_20.mp4", "xxxxx_10_20.mp4", "yyyyyyyyyyy_0_10.webm")
    code, text, _ = script(
        "kinetics",
        "--videos",
        tmp_path / "raw",
        "--annotations",
        annotations,
        "--split",
        "val",
        "--out",
        tmp_path,
    )
    assert (code, "val: 3 of 3 videos are there" in text) == (0, True)
    assert [name for name, _ in listed(tmp_path / "val.csv")] == [
        "raw/11111111111_10_20.mp4",
        "raw/xxxxx_10_20.mp4",
        "raw/yyyyyyyyyyy_0_10.webm",
    ]


def test_kinetics_takes_a_segment_once(tmp_path: Path, script: Script) -> None:
    """It says so, and refuses one of two labels. What is listed once alone has a right to the id's video."""
    rows = ["a,11111111111,1,11,val", "b,22222222222,1,11,val", "a,11111111111,1,11,val"]
    annotations = kinetics_csv(tmp_path / "official.csv", *rows)
    touch(tmp_path / "raw", "11111111111.mp4", "22222222222.mp4")
    command = (
        "kinetics",
        "--videos",
        tmp_path / "raw",
        "--annotations",
        annotations,
        "--split",
        "val",
        "--out",
    )
    code, text, _ = script(*command, tmp_path)
    assert code == 0
    assert listed(tmp_path / "val.csv") == [("raw/11111111111.mp4", 0), ("raw/22222222222.mp4", 1)]
    assert (
        f"1 rows repeat an earlier one and are left out; the first is line 4 of {annotations}: "
        "11111111111_000001_000011\n" in text
    )
    kinetics_csv(annotations, *rows[:2], "b,11111111111,1,11,val")
    code, _, error = script(*command, tmp_path / "new")
    assert code == 1
    assert one_line(
        error, "has the label 'a' in line 2 of", "and 'b' in line 4 of", "remove one of the lines"
    )


@pytest.mark.parametrize("name", ["kinetics", "folders", "folders with splits", "ssv2"])
def test_a_folder_in_use_is_refused(tmp_path: Path, script: Script, name: str) -> None:
    touch(tmp_path / "raw", "A/11111111111.mp4", "B/2.mp4")
    touch(tmp_path, "splits/trainlist01.txt", data=b"A/11111111111.mp4 1\n")
    touch(tmp_path, "splits/testlist01.txt", data=b"B/2.mp4 2\n")
    more = {
        "kinetics": [
            "--annotations",
            kinetics_csv(tmp_path / "k.csv", "A,11111111111,1,11,val"),
            "--split",
            "val",
        ],
        "folders": [],
        "folders with splits": ["--splits", tmp_path / "splits"],
        "ssv2": ["--annotations", annotate(tmp_path / "labels", {"train": {"2": OPEN}})],
    }[name]
    out = tmp_path / "out"
    command = (name.split()[0], "--videos", tmp_path / "raw", *more, "--out", out)
    out.mkdir()
    hold = "import sys, time, pathlib; from video_iresnet.runtime.storage import exclusive\n"
    hold += "with exclusive(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    holder = start("-c", hold, str(out))
    assert holder.stdout
    holder.stdout.readline()
    code, _, error = script(*command)
    holder.kill()
    holder.communicate()
    assert code == 1
    assert one_line(error, f"{out} is in use by process {holder.pid} ", "wait until it ends")
    assert [path.name for path in out.iterdir()] == [".lock"]
    assert script(*command)[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "abseiling,11111111111,1,11,val\n",
            "line 1 of {csv} is 'abseiling,11111111111,1,11,val'; expected the header `label,youtube_id,",
        ),
        ("", "line 1 of {csv} is ''; expected the header"),
        (
            "label,youtube_id,time_start,time_end,split\na,11111111111,x,11,val\n",
            "line 2 of {csv} is 'a,11111111111,x,11,val'; expected label,youtube_id",
        ),
        (
            "label,youtube_id,time_start,time_end,split\n\na,11111111111\n",
            "line 3 of {csv} is 'a,11111111111'; expected",
        ),
        (
            "label,youtube_id,time_start,time_end,split\na,11111111111,1,11,train\n",
            "{csv} has no row of the split val; it has train",
        ),
        (
            "label,youtube_id,time_start,time_end,split\na,11111111111,1,11,validate\nc,x,1,2,validate\n",
            "label 'c' of line 3 of {csv} is not among the 2 names",
        ),
    ],
)
def test_kinetics_bad_annotations(tmp_path: Path, script: Script, text: str, message: str) -> None:
    touch(tmp_path / "raw", "11111111111.mp4")
    touch(tmp_path, "val.csv", data=text.encode())
    touch(tmp_path, "names.txt", data=b"a\nb\n")
    command = (
        "kinetics",
        "--annotations",
        tmp_path / "val.csv",
        "--class-names",
        tmp_path / "names.txt",
        "--split",
        "val",
        "--out",
        tmp_path / "out",
    )
    code, _, error = script(*command, "--videos", tmp_path / "raw")
    assert code == 1
    assert one_line(error, message.format(csv=tmp_path / "val.csv"))
    assert not (tmp_path / "out").exists()


def test_kinetics_missing_folder_and_no_video(tmp_path: Path, script: Script) -> None:
    annotations = kinetics_csv(tmp_path / "val.csv", "a,11111111111,1,11,val")
    command = (
        "kinetics",
        "--annotations",
        annotations,
        "--split",
        "val",
        "--out",
        tmp_path / "out",
        "--videos",
    )
    assert one_line(script(*command, tmp_path / "gone")[2], f"{tmp_path / 'gone'} is not a folder")
    (tmp_path / "raw").mkdir()
    code, text, _ = script(*command, tmp_path / "raw")
    assert code == 0
    assert "val: 0 of 1 videos are there; no list was written" in text
    assert not (tmp_path / "out/val.csv").exists()


def test_kinetics_writes_into_no_file(tmp_path: Path, script: Script) -> None:
    annotations = kinetics_csv(tmp_path / "val.csv", "a,11111111111,1,11,val")
    touch(tmp_path / "raw", "11111111111.mp4")
    code, _, error = script(
        "kinetics",
        "--videos",
        tmp_path / "raw",
        "--annotations",
        annotations,
        "--split",
        "val",
        "--out",
        annotations,
    )
    assert code == 1
    assert one_line(error, f"cannot make the folder {annotations}: File exists; name another --out")


def test_kinetics_test_split_without_labels(tmp_path: Path, script: Script) -> None:
    annotations = kinetics_csv(
        tmp_path / "test.csv", "11111111111,1,11,test", header="youtube_id,time_start,time_end,split"
    )
    touch(tmp_path / "out/videos", "11111111111.mp4")
    code, text, _ = script(
        "kinetics",
        "--videos",
        tmp_path / "out/videos",
        "--annotations",
        annotations,
        "--split",
        "test",
        "--out",
        tmp_path / "out",
    )
    assert code == 0
    assert (tmp_path / "out/test.csv").read_text() == "videos/11111111111.mp4 0\n"
    assert "accuracies would mean nothing" in text


# Own folders, UCF101, HMDB51


def test_folders_are_divided_by_class_and_group(tmp_path: Path, script: Script) -> None:
    raw = tmp_path / "raw"
    names = [
        f"Archery/v_Archery_g{group:02d}_c{clip:02d}.avi" for group in range(1, 11) for clip in range(1, 5)
    ]
    touch(
        raw,
        *names,
        *(f"Baby Crawling/{number}.mp4" for number in range(20)),
        "Archery/notes.txt",
        "stray.mp4",
        "One/only.mp4",
    )
    (raw / "Empty").mkdir()
    command = ("folders", "--videos", raw, "--val-fraction", "0.2", "--test-fraction", "0.1", "--out")
    code, text, error = script(*command, tmp_path / "a")
    assert (code, error) == (0, "")
    found = {split: listed(tmp_path / f"a/{split}.csv", 3) for split in ("train", "val", "test")}
    assert {
        split: [sum(label == c for _, label in entries) for c in range(3)] for split, entries in found.items()
    } == {
        "train": [28, 14, 1],
        "val": [8, 4, 0],
        "test": [4, 2, 0],
    }
    groups = {
        split: {Path(name).name[:13] for name, label in entries if label == 0}
        for split, entries in found.items()
    }
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 10
    assert len({name for entries in found.values() for name, _ in entries}) == 61
    assert (tmp_path / "a/classes.txt").read_text() == "Archery\nBaby Crawling\nOne\n"
    for words in (
        "1 other files",
        "1 videos in no class folder",
        "1 folders hold no video and are no class: Empty",
        "val: 1 classes have too few videos",
    ):
        assert words in text
    assert script(*command, tmp_path / "b")[0] == 0
    assert (tmp_path / "a/val.csv").read_bytes() == (tmp_path / "b/val.csv").read_bytes()
    assert script(*command, tmp_path / "c", "--seed", "1")[0] == 0
    assert (tmp_path / "a/val.csv").read_bytes() != (tmp_path / "c/val.csv").read_bytes()


def test_folders_that_hold_no_class(tmp_path: Path, script: Script) -> None:
    touch(tmp_path / "raw", "a.mp4", "b/x.txt")
    code, _, error = script("folders", "--videos", tmp_path / "raw", "--out", tmp_path / "out")
    assert code == 1
    assert one_line(error, "raw holds no folder with videos; expected one folder for each class")
    with pytest.raises(SystemExit):
        script("folders", "--videos", tmp_path / "raw", "--out", tmp_path / "out", "--val-fraction", "1")


def next_command(text: str) -> list[str]:
    """The words that a shell makes of the command printed last."""
    return shlex.split(text.splitlines()[-1].removeprefix("next: "))


def test_the_next_command_runs(tmp_path: Path, script: Script, run_net: RunNet) -> None:
    """As it is printed, apart from the size of the run: it trains on the lists and tests on what it says."""
    for number in range(10):
        write_video(tmp_path / f"my raw/it's {number % 2}/{number}.mp4", 12)
    out = tmp_path / "my lists, $1"
    code, text, _ = script("folders", "--videos", tmp_path / "my raw", "--out", out, "--val-fraction", "0.2")
    assert code == 0
    assert "tests on the validation videos" in text
    python, tool, *arguments = next_command(text)
    assert shutil.which(python) == sys.executable
    assert (ROOT / tool).samefile(ROOT / "tools/run_net.py")
    words = iter(arguments)
    assert next(words) == "--cfg"
    config = str(ROOT / next(words))
    overrides = dict(zip(words, words, strict=True))
    assert overrides["OUTPUT_DIR"] == "output/my lists, $1"
    overrides |= {"OUTPUT_DIR": str(tmp_path / "run"), "NUM_GPUS": "0", "DATA_LOADER.NUM_WORKERS": "0"}
    overrides |= {"TRAIN.BATCH_SIZE": "4", "SOLVER.MAX_EPOCH": "1", "SOLVER.WARMUP_EPOCHS": "0"}
    overrides |= {"RESNET.WIDTH_PER_GROUP": "4", "DATA.NUM_FRAMES": "4", "TEST.NUM_ENSEMBLE_VIEWS": "1"}
    assert run_net(*[word for pair in overrides.items() for word in pair], cfg=config) == 0
    predictions = (tmp_path / "run/predictions.csv").read_text()
    assert predictions.count(".mp4") == len(listed(out / "val.csv", 2)) == 2
    assert all(name in predictions for name, _ in listed(out / "val.csv", 2))


def test_no_command_without_held_out_videos(tmp_path: Path, script: Script) -> None:
    touch(tmp_path / "raw", "A/1.mp4", "A/2.mp4")
    command = ("folders", "--videos", tmp_path / "raw", "--out", tmp_path / "a")
    text = script(*command, "--val-fraction", "0")[1]
    assert text.splitlines()[-1].endswith("what run_net.py needs: train.csv, and val.csv or test.csv")
    text = script(*command[:4], tmp_path / "b", "--val-fraction", "0.3", "--test-fraction", "0")[1]
    assert next_command(text)[-2:] == ["DATA.TEST_LIST", "val.csv"]


def test_folders_of_images(tmp_path: Path, script: Script, run_net: RunNet) -> None:
    """They are looked for on request; the command trains and tests an image network."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    rng = np.random.default_rng(0)
    for number in range(12):
        path = raw / f"{'ab'[number % 2]}/deeper/{number}.{('JPEG', 'png', 'webp')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    touch(raw, "a/notes.txt", "a/empty.jpg", data=b"")
    command = ("folders", "--videos", raw, "--out", out)
    assert one_line(
        script(*command)[2], "holds no folder with videos", "or --images where they hold pictures"
    )
    code, text, _ = script(*command, "--images", "--val-fraction", "0.3", "--test-fraction", "0.2")
    assert code == 0
    assert "12 images of 2 classes; passed over: 1 other files, 1 empty images, 0 images" in text
    counts = {split: len(listed(out / f"{split}.csv", 2)) for split in ("train", "val", "test")}
    assert counts == {"train": 6, "val": 4, "test": 2}
    _, _, *arguments = next_command(text)
    words = iter(arguments)
    assert (next(words), next(words)) == ("--cfg", "configs/own/iresnet18.yaml")
    overrides = dict(zip(words, words, strict=True)) | {"OUTPUT_DIR": str(tmp_path / "run"), "NUM_GPUS": "0"}
    overrides |= {"TRAIN.BATCH_SIZE": "3", "SOLVER.MAX_EPOCH": "1", "SOLVER.WARMUP_EPOCHS": "0"}
    overrides |= {"RESNET.WIDTH_PER_GROUP": "4", "DATA_LOADER.NUM_WORKERS": "0"}
    config = str(ROOT / "configs/own/iresnet18.yaml")
    assert run_net(*[word for pair in overrides.items() for word in pair], cfg=config) == 0
    predictions = (tmp_path / "run/predictions.csv").read_text()
    assert all(name in predictions for name, _ in listed(out / "test.csv", 2))


def test_folders_of_splits(tmp_path: Path, script: Script) -> None:
    """Folders train and val with the classes below are no classes."""
    raw = tmp_path / "raw"
    names = [f"train/{name}/{number}.jpg" for name in "ab" for number in range(5)]
    touch(raw, *names, "Valid/a/1.png", "Valid/c/2.png", "train/none.jpg", "readme.txt")
    command = ("folders", "--images", "--videos", raw)
    code, text, _ = script(*command, "--out", tmp_path / "all")
    assert code == 0
    assert "12 images of 3 classes; passed over: 1 other files, 0 empty images, 1 images in no" in text
    assert "its folders are the splits train, val" in text
    assert (tmp_path / "all/classes.txt").read_text() == "a\nb\nc\n"
    expected = [(str(raw / "Valid/a/1.png"), 0), (str(raw / "Valid/c/2.png"), 2)]
    assert listed(tmp_path / "all/val.csv", 3) == expected
    train = listed(tmp_path / "all/train.csv", 3)
    assert train == [(str(raw / name), "ab".index(name[6])) for name in names]
    assert next_command(text)[-2:] == ["DATA.TEST_LIST", "val.csv"]
    assert script(*command, "--out", tmp_path / "held", "--test-fraction", "0.2")[0] == 0
    held = [listed(tmp_path / f"held/{split}.csv", 3) for split in ("train", "test")]
    assert [len(entries) for entries in held] == [8, 2]
    assert sorted(held[0] + held[1]) == train
    code, _, error = script(*command, "--out", tmp_path / "new", "--val-fraction", "0.2")
    assert one_line(error, "--val-fraction is 0.2, but", "has a folder for val; leave the option out")
    touch(raw, "val/a/3.png")
    error = script(*command, "--out", tmp_path / "new")[2]
    assert one_line(error, "the folders Valid, train, val name a split twice")
    touch(raw, "other/a/3.png")
    assert script(*command, "--out", tmp_path / "new")[0] == 0
    assert (tmp_path / "new/classes.txt").read_text() == "Valid\nother\ntrain\nval\n"


def test_splits_that_list_a_video_twice_are_refused(tmp_path: Path, script: Script) -> None:
    touch(tmp_path / "raw", "A/1.mp4", "A/2.mp4")
    touch(tmp_path, "splits/trainlist01.txt", data=b"A/1.avi 1\nA/2.avi 1\n")
    touch(tmp_path, "splits/testlist01.txt", data=b"A/2.avi 1\n")
    command = ("folders", "--videos", tmp_path / "raw", "--splits", tmp_path / "splits", "--out", tmp_path)
    code, _, error = script(*command)
    assert code == 1
    assert one_line(error, "A/2.avi is listed twice in", "remove one of the lines")


def test_ucf101_splits(tmp_path: Path, script: Script) -> None:
    raw, splits = tmp_path / "raw", tmp_path / "splits"
    touch(
        raw,
        *(f"Archery/v_Archery_g{group:02d}_c01.mp4" for group in range(1, 8)),
        "Biking/v_Biking_g01_c01.avi",
    )
    touch(splits, "classInd.txt", data=b"1 Archery\r\n2 Biking\r\n")
    train = "".join(f"Archery/v_Archery_g{group:02d}_c01.avi 1\r\n" for group in range(3, 8))
    touch(splits, "trainlist02.txt", data=train.encode())
    touch(
        splits,
        "testlist02.txt",
        data=b"Archery/v_Archery_g01_c01.avi\r\nBiking/v_Biking_g01_c01.avi\r\n"
        b"Biking/v_Biking_g02_c01.avi\r\n",
    )
    command = ("folders", "--videos", raw, "--splits", splits, "--out")
    code, text, _ = script(*command, tmp_path / "out", "--fold", "2")
    assert code == 0
    assert [(Path(name).name, label) for name, label in listed(tmp_path / "out/test.csv")] == [
        ("v_Archery_g01_c01.mp4", 0),
        ("v_Biking_g01_c01.avi", 1),
    ]
    assert len(listed(tmp_path / "out/train.csv")) == 5
    assert "test: 2 of 3 videos are there" in text
    assert next_command(text)[-2:] == ["DATA.VAL_LIST", "test.csv"]
    assert "validates on the test videos" in text
    assert script(*command, tmp_path / "held", "--fold", "2", "--val-fraction", "0.4")[0] == 0
    held = {
        split: {name for name, _ in listed(tmp_path / f"held/{split}.csv")}
        for split in ("train", "val", "test")
    }
    assert (len(held["train"]), len(held["val"]), len(held["test"])) == (3, 2, 2)
    assert held["train"] | held["val"] == {name for name, _ in listed(tmp_path / "out/train.csv")}
    assert one_line(
        script(*command, tmp_path / "out")[2],
        "holds neither trainlist01.txt (UCF101) nor <class>_test_split1.txt (HMDB51)",
    )
    touch(splits, "testlist02.txt", data=b"Archery/x.avi\nRowing/y.avi\n")
    assert one_line(
        script(*command, tmp_path / "new", "--fold", "2")[2],
        "line 2 of",
        "'Rowing/y.avi'; expected a class of",
    )


def test_hmdb51_splits(tmp_path: Path, script: Script) -> None:
    """The same name in two classes, names with brackets, and videos of neither split."""
    raw, splits = tmp_path / "raw", tmp_path / "splits"
    touch(
        raw,
        "brush_hair/a[1]_0.avi",
        "brush_hair/b.avi",
        "brush_hair/c.avi",
        "cartwheel/b.avi",
        "cartwheel/only.avi",
    )
    touch(splits, "brush_hair_test_split1.txt", data=b"a[1]_0.avi 1 \nb.avi 2 \nc.avi 0 \nonly.avi 1 \n")
    touch(splits, "cartwheel_test_split1.txt", data=b"b.avi 1 \n")
    command = ("folders", "--videos", raw, "--splits", splits, "--out", tmp_path)
    code, text, _ = script(*command)
    assert code == 0
    assert listed(tmp_path / "train.csv", 2) == [("raw/brush_hair/a[1]_0.avi", 0), ("raw/cartwheel/b.avi", 1)]
    assert listed(tmp_path / "test.csv", 2) == [("raw/brush_hair/b.avi", 0)]
    assert "train: 2 of 3 videos are there" in text
    assert "several videos" not in text
    touch(splits, "cartwheel_test_split1.txt", data=b"b.avi 3\n")
    assert one_line(script(*command)[2], "line 1 of", "'b.avi 3'; expected `name 0`, `name 1` or `name 2`")


# Something-Something


def annotate(folder: Path, splits: dict[str, dict[str, str]]) -> Path:
    """The official files; `splits`: file -> id -> template."""
    templates = ["Closing [something]", "Opening [something] with [something]"]
    folder.mkdir(parents=True, exist_ok=True)
    labels = {
        template.replace("[", "").replace("]", ""): str(number) for number, template in enumerate(templates)
    }
    (folder / "something-something-v2-labels.json").write_text(json.dumps(labels))
    for name, videos in splits.items():
        entries = [
            {"id": video, "template": template, "placeholders": []} if template else {"id": video}
            for video, template in videos.items()
        ]
        (folder / f"something-something-v2-{name}.json").write_text(json.dumps(entries))
    return folder


CLOSE, OPEN = "Closing [something]", "Opening [something] with [something]"


def test_ssv2_lists(tmp_path: Path, script: Script) -> None:
    labels = annotate(
        tmp_path / "labels",
        {"train": {"1": OPEN, "2": CLOSE}, "validation": {"3": OPEN, "4": CLOSE}, "test": {"5": ""}},
    )
    touch(tmp_path / "raw", "20bn-something-something-v2/1.webm", "2.webm", "3.webm", "5.webm")
    command = ("ssv2", "--videos", tmp_path / "raw", "--annotations", labels, "--out")
    code, text, error = script(*command, tmp_path)
    assert (code, error) == (0, "")
    assert listed(tmp_path / "train.csv", 2) == [
        ("raw/20bn-something-something-v2/1.webm", 1),
        ("raw/2.webm", 0),
    ]
    assert listed(tmp_path / "val.csv", 2) == [("raw/3.webm", 1)]
    assert listed(tmp_path / "test.csv", 2) == [("raw/5.webm", 0)]
    assert (tmp_path / "val_missing.csv").read_text() == "id,label\n4,Closing something\n"
    assert (tmp_path / "classes.txt").read_text() == "Closing something\nOpening something with something\n"
    assert "val: 1 of 2 videos are there" in text
    assert "test: the annotations have no labels" in text
    annotate(labels, {"train": {"1": "Opning [something] with [something]"}})
    assert one_line(
        script(*command, tmp_path)[2],
        "label 'Opning something with something' of video 1",
        "did you mean 'Opening something with something'?",
    )
    annotate(labels, {"train": {"../1": OPEN}})
    assert one_line(script(*command, tmp_path)[2], "the id '../1'", "cannot be the name of a folder")
    (tmp_path / "nothing").mkdir()
    assert one_line(
        script(*command[:4], tmp_path / "nothing", "--out", tmp_path)[2],
        "nothing does not hold something-something-v2-labels.json",
    )


def test_ssv2_from_archives(tmp_path: Path, script: Script) -> None:
    labels = annotate(tmp_path / "labels", {"validation": {"3": OPEN, "4": CLOSE}})
    archive = load_script("tests/test_archives.py")
    parts = archive.in_parts(
        archive.write_tar(tmp_path / "a.tgz", {"v2/3.webm": b"3" * 9, "v2/4.webm": b"4" * 9}), 60
    )
    command = (
        "ssv2",
        "--videos",
        tmp_path / "raw",
        "--annotations",
        labels,
        "--out",
        tmp_path,
        "--archives",
        *parts,
    )
    assert "2 files unpacked, 0 were there" in script(*command)[1]
    assert listed(tmp_path / "val.csv", 2) == [("raw/v2/3.webm", 1), ("raw/v2/4.webm", 0)]
    assert "0 files unpacked, 2 were there" in script(*command)[1]


def times(num_frames: int, rate: int) -> list[Fraction]:
    return [Fraction(number, rate) for number in range(num_frames)]


def test_frames_at_a_rate() -> None:
    """Worked out by hand; 12 frames a second at 30 repeat each frame 2 or 3 times."""
    assert resampled(times(4, 12), Fraction(30)) == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert resampled([5 + time for time in times(6, 30)], Fraction(30)) == [0, 1, 2, 3, 4, 5]
    assert resampled(times(9, 30), Fraction(10)) == [1, 4, 7]
    assert resampled([Fraction(0), Fraction(1, 10), Fraction(1, 2)], Fraction(10)) == [0, 1, 1, 1, 1, 2, 2, 2]
    assert resampled([Fraction(3)], Fraction(30)) == [0]


@pytest.mark.parametrize(
    ("num_frames", "rate", "fps"), [(40, 12, 30), (37, 25, 30), (50, 24, 30), (100, 30, 12), (45, 12, 15)]
)
def test_frames_at_a_rate_are_those_of_ffmpeg(num_frames: int, rate: int, fps: int) -> None:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=8, height=8, format="gray", time_base=Fraction(1, rate))
    resampler, sink = graph.add("fps", f"fps={fps}"), graph.add("buffersink")
    source.link_to(resampler)
    resampler.link_to(sink)
    graph.configure()
    for number in range(num_frames):
        frame = av.VideoFrame.from_ndarray(np.full((8, 8), number, np.uint8), format="gray")
        frame.pts, frame.time_base, frame.duration = number, Fraction(1, rate), 1
        graph.push(frame)
    graph.push(None)
    expected = []
    with contextlib.suppress(av.EOFError):
        while True:
            expected.append(int(sink.pull().to_ndarray()[0, 0]))
    assert resampled(times(num_frames, rate), Fraction(fps)) == expected


def shown_in(folder: Path) -> list[int]:
    return shown_numbers(torch.stack([picture(path) for path in sorted(folder.glob("*.jpg"))]))


def picture(path: Path) -> torch.Tensor:
    return torch.from_numpy(simplejpeg.decode_jpeg(path.read_bytes()))


def test_ssv2_frames_and_their_lists(tmp_path: Path, script: Script) -> None:
    """Frames show what the video shows, and both lists of them are read back; a video that is none is
    reported.
    """
    labels = annotate(tmp_path / "labels", {"train": {"10": OPEN, "11": CLOSE, "12": OPEN}})
    write_video(tmp_path / "raw/10.webm", 20, codec="libvpx")
    write_video(tmp_path / "raw/11.mp4", 5)
    touch(tmp_path / "raw", "12.webm")
    out = tmp_path / "out"
    command = (
        "ssv2",
        "--videos",
        tmp_path / "raw",
        "--annotations",
        labels,
        "--out",
        out,
        "--frames",
        "--workers",
        "0",
    )
    code, text, _ = script(*command)
    assert code == 0
    assert shown_in(out / "frames/10") == list(range(20))
    assert sorted(path.name for path in (out / "frames").iterdir()) == ["10", "11", "frame_rates.json"]
    assert json.loads((out / "frames/frame_rates.json").read_text()) == {"10": 25, "11": 25}
    assert sorted(path.name for path in (out / "frames/11").iterdir()) == [
        f"11_{number:06d}.jpg" for number in range(1, 6)
    ]
    rows = (out / "frame_lists/train.csv").read_text().splitlines()
    assert rows[0] == "original_vido_id video_id frame_id path labels"
    assert (rows[1], rows[21], len(rows)) == ('10 0 0 10/10_000001.jpg ""', '11 1 0 11/11_000001.jpg ""', 26)
    numbers = read_json_labels(
        str(labels / "something-something-v2-train.json"),
        ["Closing something", "Opening something with something"],
    )
    records = read_frame_list(str(out / "frame_lists/train.csv"), root=str(out / "frames"), labels=numbers)
    assert records[0] == Record("10", f"{out}/frames/10/10_%06d.jpg", 1, 1, 20)
    assert records == read_tsm_list(
        str(out / "frame_lists/train.txt"),
        root=str(out / "frames"),
        num_classes=2,
        pattern="{folder}_%06d.jpg",
    )
    assert not missing_videos(records)
    assert "25 frames of 2 videos" in text
    assert "1 videos cannot be read and are in no list of frames" in text
    assert (out / "unreadable.csv").read_text().splitlines()[1].startswith(f"{tmp_path / 'raw/12.webm'},")
    code, _, error = script(*command, "--fps", "30")
    assert one_line(
        error,
        'frames were extracted with {"fps": 0.0, "short_side": 0}; '
        "take the same --fps and --short-side, or another --out",
    )
    assert script(*command, "--fps", "0")[0] == 0


def test_ssv2_frames_smaller_and_at_a_rate(tmp_path: Path, script: Script) -> None:
    """25 frames a second at 50 repeat each; larger pictures get the short side, smaller ones keep theirs."""
    labels = annotate(tmp_path / "labels", {"train": {"10": OPEN, "11": CLOSE}})
    write_video(tmp_path / "raw/10.mp4", 6, size=(96, 128))
    write_video(tmp_path / "raw/11.mp4", 2, size=(32, 64))
    command = (
        "ssv2",
        "--videos",
        tmp_path / "raw",
        "--annotations",
        labels,
        "--out",
        tmp_path,
        "--frames",
        "--workers",
        "0",
    )
    assert script(*command, "--fps", "50", "--short-side", "48")[0] == 0
    assert shown_in(tmp_path / "frames/10") == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert picture(tmp_path / "frames/10/10_000001.jpg").shape == (48, 64, 3)
    assert picture(tmp_path / "frames/11/11_000004.jpg").shape == (32, 64, 3)
    assert json.loads((tmp_path / "frames/frame_rates.json").read_text()) == {"10": 50, "11": 50}


@pytest.mark.parametrize(("fps", "num_frames"), [(0.0, 60), (50.0, 120)])
def test_frames_are_those_of_the_stream_that_is_read(tmp_path: Path, fps: float, num_frames: int) -> None:
    """Not of the still that is the file's first stream."""
    video = foreign.still_first_mp4(tmp_path / "a.mp4")
    (tmp_path / "partial").mkdir()
    job = FrameJob(str(video), "a", str(tmp_path / "frames"), str(tmp_path / "partial"), fps, 0)
    (tmp_path / "frames").mkdir()
    for _ in range(2):  # made, then found
        assert extract_frames(job) == Extracted(num_frames, pytest.approx(fps or 25))
    assert shown_in(tmp_path / "frames/a")[-1] == 59


def test_kill_while_extracting_then_again(tmp_path: Path, script: Script) -> None:
    """A folder of frames is whole or not there, and the second run makes what one run would have made."""
    videos = {str(number): OPEN for number in range(40)}
    labels = annotate(tmp_path / "labels", {"train": videos})
    source = write_video(tmp_path / "source.mp4", 60, size=(96, 128))
    (tmp_path / "raw").mkdir()
    for video in videos:
        shutil.copy(source, tmp_path / f"raw/{video}.mp4")
    frames = tmp_path / "out/frames"
    command = ("--videos", str(tmp_path / "raw"), "--annotations", str(labels), "--frames", "--out")
    process = start("data_prep/ssv2.py", *command, str(tmp_path / "out"), "--workers", "0", cwd=ROOT)
    while len(list(frames.glob("[0-9]*"))) < 3 or not list(frames.glob(".partial/*/*.jpg")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    whole = {path: path.stat().st_mtime_ns for path in frames.glob("[0-9]*")}
    assert 3 <= len(whole) < 40
    assert all(len(list(path.iterdir())) == 60 for path in whole)
    assert not (tmp_path / "out/frame_lists").exists()
    assert "2,400 frames of 40 videos" in script("ssv2", *command, tmp_path / "out", "--workers", "1")[1]
    assert sorted(path.name for path in frames.iterdir()) == [*sorted(videos), "frame_rates.json"]
    assert json.loads((frames / "frame_rates.json").read_text()) == dict.fromkeys(videos, 25)
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert script("ssv2", *command, tmp_path / "other", "--workers", "0")[0] == 0
    for path in [*(tmp_path / "other/frames").rglob("*.jpg"), tmp_path / "other/frame_lists/train.csv"]:
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "other")).read_bytes()


def test_full_disk_while_extracting(tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does."""
    labels = annotate(tmp_path / "labels", {"train": {"10": OPEN}})
    write_video(tmp_path / "raw/10.mp4", 4, size=(96, 128))
    code = f"""
import resource, signal, sys
from conftest import load_script
main = load_script("data_prep/ssv2.py").main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
root = {str(tmp_path)!r}
folders = ["--videos", root + "/raw", "--annotations", {str(labels)!r}, "--out", root + "/out"]
sys.exit(main([*folders, "--frames", "--workers", "0"]))
"""
    process = start("-c", code, cwd=ROOT / "tests", environment={"PYTHONPATH": str(ROOT)})
    text = process.communicate()[0]
    assert process.returncode == 1
    error = f"error: cannot write {tmp_path / 'out/frames/10'}: File too large; make room and start again, "
    error += "what is extracted is kept"
    assert text.splitlines()[-1] == error
    assert not list((tmp_path / "out/frames").iterdir())
