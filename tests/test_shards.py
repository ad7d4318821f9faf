"""Shards: the same samples and results as from loose files, and files that other programs read."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import test_stores
import torch
from conftest import DEMO, RunNet, copy_video, load_script, numbered_frame, write_video
from object_store import Store
from PIL import Image
from test_decode_frames import write_frames

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.data.dataset import SampleKey
from video_iresnet.data.decode import DecodeError, open_video
from video_iresnet.data.decode.backends import BACKENDS
from video_iresnet.data.records import Record, read_records
from video_iresnet.prep import shards as prep
from video_iresnet.prep.shard_index import Catalogue
from video_iresnet.prep.shards import Layout, Packed, check_shards, pack_lists
from video_iresnet.prep.verify import output_files, verify
from video_iresnet.runtime import shards
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.shards import INDEX, find, list_root, member_name
from video_iresnet.runtime.storage import path_manager

server, store = test_stores.server, test_stores.store  # fixtures
SMALL = 40_000  # bytes: a few videos of these tests


def pack(out: Path, *lists: Path, layout: Layout | None = None, workers: int = 0) -> list[Packed]:
    return pack_lists(lists, out, layout or Layout(), shard_bytes=SMALL, workers=workers)


def members(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def contents(folder: Path) -> dict[str, str]:
    """The hash of each file but the lock, and the index of packets, whose entries come in any order."""
    others = {".lock", "packets.sqlite"}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in others]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def dump(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / INDEX)) as index:
        return list(index.iterdump())


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos of several kinds, one of them missing, in two lists that share two."""
    folder = tmp_path_factory.mktemp("loose")
    for name in ("a b/1.mp4", "a b/2.mkv", "c/3.avi"):
        write_video(folder / name, 30, codec="mpeg4" if name.endswith("avi") else "libx264")
    names = ["a b/1.mp4", "a b/2.mkv", "c/3.avi", *(f"c/é{i}.mp4" for i in range(8))]
    for name in names[3:]:
        copy_video(folder / names[0], folder / name)
    (folder / "train.csv").write_bytes(
        "".join(f"{n},{i % 2}\r\n" for i, n in enumerate([*names, "gone"])).encode()
    )
    (folder / "val.csv").write_text(f"{names[1]},1\n{names[4]},0\n{names[0]},0\n")
    copy_video(folder / names[0], folder / "c/of val.mp4")
    with open(folder / "val.csv", "a") as file:
        file.write("c/of val.mp4,1\n")
    (folder / "classes.txt").write_text("one\ntwo\n")
    return folder


@pytest.fixture(scope="module")
def packed(loose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    pack(out, loose / "train.csv", loose / "val.csv")
    return out


def data_of(folder: Path | str, *overrides: str) -> list[Any]:
    """What a run of these settings reads: records, samples of training, views of a test."""
    settings = f"""NUM_GPUS 0 DATA.PATH_TO_DATA_DIR {folder} DATA.TEST_LIST train.csv TRAIN.BATCH_SIZE 2
    DATA.NUM_FRAMES 4 DATA.SAMPLING_RATE 3 DATA.TRAIN_CROP_SIZE 32 DATA.TRAIN_JITTER_SCALES [32,40]
    DATA.TEST_CROP_SIZE 32 TEST.NUM_ENSEMBLE_VIEWS 2 MODEL.NUM_CLASSES 2"""
    cfg = load_config(DEMO, [*settings.split(), *overrides])
    train, test = (build.build_records(cfg, f"DATA.{key}_LIST") for key in ("TRAIN", "TEST"))
    clips = build.build_training_data(cfg, train)
    views = build.build_test_data(cfg, test)
    return [
        [record._replace(path="") for record in train],
        train.identity(),
        [clips[SampleKey(1, i, 4, 32)] for i in range(len(train))],
        [views[i] for i in range(len(test))],
    ]


def without_paths(data: list[Any]) -> list[Any]:
    """What a run reads, without the paths in the reasons why a video cannot be read."""
    records, identity, samples, views = data
    samples = [sample._replace(failures=[f.record for f in sample.failures]) for sample in samples]
    return [records, identity, samples, [v._replace(error=v.error[-25:]) for v in views]]


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_are_the_same(loose: Path, packed: Path, backend: str) -> None:
    pytest.importorskip({"pyav": "av"}.get(backend, backend))
    ours, theirs = (data_of(folder, "DATA.DECODING_BACKEND", backend) for folder in (packed, loose))
    assert sum(len(sample.failures) for sample in ours[2]) >= 1
    assert ours[3][-1].error.endswith("No such file or directory")
    assert_same(without_paths(ours), without_paths(theirs))


def test_shards_in_a_store(store: Store, packed: Path) -> None:
    for path in packed.iterdir():
        store.put(f"packed/{path.name}", path.read_bytes())
    assert_same(without_paths(data_of("s3://bucket/packed")), without_paths(data_of(packed)))


def test_the_benchmark_compares_folders(
    loose: Path, packed: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main = load_script("tools/benchmark.py").main
    folders = ["folders", "--cfg", DEMO, "--folders", str(loose), str(packed), "--samples", "5", *small]
    assert main([*folders, "DATA.TRAIN_LIST", "val.csv", "DATA.CLASS_NAMES", ""]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| /")]
    assert [row.split("|")[4].strip() for row in rows] == ["5 of 5"] * 2


@pytest.mark.parametrize("list_format", ["frames", "folders"])
def test_folders_of_frames(tmp_path: Path, list_format: str) -> None:
    loose, out = tmp_path / "50%", tmp_path / "packed%d"
    rows = ["original_vido_id video_id frame_id path labels"]
    for video in ("7", "8%"):
        write_frames(loose / "frames" / video, list(range(12)), 0)
        rows += [f'{video} 0 {i} {video}/{video}_{i:06d}.jpg ""' for i in range(12)]
    (loose / "frames/8%/8%_000003.jpg").unlink()
    (loose / "frames/frame_rates.json").write_text('{"7": 12, "8%": 6, "9": 3}')
    prefix, layout = ["DATA.PATH_PREFIX", "frames"], Layout(list_format, "frames", "{folder}_%06d.jpg")
    more = ["DATA.LIST_FORMAT", list_format, "DATA.FRAME_NAMES", "{folder}_%06d.jpg", "DATA.TARGET_FPS", "12"]
    if list_format == "frames":
        (loose / "train.csv").write_text("\n".join(rows))
        labels = "something-something-v2-"
        (loose / f"{labels}labels.json").write_text('{"a": "0", "b": "1"}')
        for split in ("train", "validation"):
            (loose / f"{labels}{split}.json").write_text(
                '[{"id": "7", "template": "a"}, {"id": "8%", "template": "b"}]'
            )
    else:
        (loose / "train.csv").write_text("7 12 0\n8% 12 1\n")
    (result,) = pack(out, loose / "train.csv", layout=layout)
    assert result.missing == [("8%", 0 if list_format == "frames" else 1, "No such file or directory")]
    ours, theirs = data_of(out, *prefix, *more), data_of(loose, *prefix, *more)
    assert [record.fps for record in ours[0]] == [12, 6]
    assert_same(without_paths(ours), without_paths(theirs))
    # What was missing can be added.
    write_frames(loose / "frames/8%", [3], 3)
    (result,) = pack(out, loose / "train.csv", layout=layout)
    assert (result.missing, result.num_shards) == ([], 1)
    added = max(out.glob("train-*.tar"))
    assert members(added) == ["8%/8%_000003.jpg"]
    shards._opened.indices.clear()  # a process sees the index as it was at first
    assert data_of(out, *prefix, *more)[3][1].error == ""


def test_a_run_gives_the_same_results(
    shapes: Path, small: list[str], run_net: RunNet, tmp_path: Path
) -> None:
    """And the test has the same identity, so one that began with loose files goes on from shards."""
    pack(tmp_path / "packed", *(shapes / f"{split}.csv" for split in ("train", "val", "test")))
    weights = tmp_path / "weights.pyth"
    torch.save({"model_state": build.build_model(load_config(DEMO, small)).state_dict()}, weights)
    test = f"TRAIN.ENABLE False TEST.CHECKPOINT_FILE_PATH {weights}".split()
    for name, folder in (("a", shapes), ("b", tmp_path / "packed")):
        run = ["DATA.PATH_TO_DATA_DIR", str(folder), "OUTPUT_DIR", str(tmp_path / name)]
        assert run_net(*small, *test, *run) == 0
    predictions = [(tmp_path / name / "predictions.csv").read_bytes() for name in "ab"]
    assert predictions[0] == predictions[1]
    results = [json.loads((tmp_path / name / "results.json").read_text()) | {"seconds": 0} for name in "ab"]
    assert results[0] == results[1]
    a, b = ([path.name for path in (tmp_path / name / "views").iterdir()] for name in "ab")
    assert a == b


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset closes no file
def test_tar_and_webdataset_read_them(loose: Path, packed: Path, tmp_path: Path) -> None:
    tars = sorted(packed.glob("*.tar"))
    assert {path.name for path in tars} >= {"train-00000.tar", "train-00001.tar", "val-00000.tar"}
    assert max(path.stat().st_size for path in tars) < 2 * SMALL
    for path in tars:
        subprocess.run(["tar", "xf", path], cwd=tmp_path, check=True)
    unpacked = contents(tmp_path)
    assert unpacked == {name: digest for name, digest in contents(loose).items() if "/" in name}
    name = "a b/1.mp4"
    assert int((tmp_path / name).stat().st_mtime) == int((loose / name).stat().st_mtime)
    webdataset = pytest.importorskip("webdataset")
    samples = webdataset.WebDataset([str(path) for path in tars], shardshuffle=False)
    found = {
        f"{sample['__key__']}.{kind}": hashlib.sha256(sample[kind]).hexdigest()
        for sample in samples
        for kind in ("mp4", "mkv", "avi")
        if kind in sample
    }
    assert found == unpacked


def test_members_come_in_the_order_of_the_list_and_once(loose: Path, packed: Path) -> None:
    names = [n for path in sorted(packed.glob("train-*.tar")) for n in members(path)]
    listed = (loose / "train.csv").read_text().splitlines()
    assert names == [line.rpartition(",")[0] for line in listed][:-1]
    assert [members(path) for path in packed.glob("val-*.tar")] == [["c/of val.mp4"]]
    for name in ("train.csv", "val.csv", "classes.txt"):
        assert (packed / name).read_bytes() == (loose / name).read_bytes()
    assert (packed / "train_missing.csv").read_text() == (
        "path,label,reason\ngone,1,No such file or directory\n"
    )


def test_more_lists_can_be_added_and_the_folder_moved(loose: Path, packed: Path, tmp_path: Path) -> None:
    pack(tmp_path / "a", loose / "train.csv")
    member = find(f"{shards.root_of(str(tmp_path / 'a'))}/c/3.avi")
    with pytest.raises(FileNotFoundError, match=r"c/of val\.mp4"):
        find(f"{shards.root_of(str(tmp_path / 'a'))}/c/of val.mp4")
    (train, val) = pack(tmp_path / "a", loose / "train.csv", loose / "val.csv")
    assert (train.num_shards, val.num_shards) == (0, 1)
    assert dump(tmp_path / "a") == dump(packed)
    both = contents(tmp_path / "a"), contents(packed)
    assert {**both[0], INDEX: ""} == {**both[1], INDEX: ""}
    os.rename(tmp_path / "a", tmp_path / "b")
    moved = find(f"{shards.root_of(str(tmp_path / 'b'))}/c/3.avi")
    assert moved[1:] == member[1:]
    assert check_shards(tmp_path / "b", workers=0) == (12, [])


@pytest.mark.parametrize("moment", ["while writing", "before the index"])
def test_a_stopped_run_goes_on(
    loose: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """It ends with the same bytes, whichever moment it was stopped at."""
    left = [1]

    def stop(work: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return work(*arguments)

        return stopped

    place, name = (Catalogue, "complete") if moment == "before the index" else (prep, "write_shard")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, stop(getattr(place, name)))
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path, loose / "train.csv", loose / "val.csv")
    there = {path.name for path in tmp_path.glob("*.tar")}
    assert there == {"train-00000.tar", *(["train-00001.tar"] if place is Catalogue else [])}
    assert not (tmp_path / "train.csv").exists()
    assert not (tmp_path / INDEX).exists()
    written = os.stat(tmp_path / "train-00000.tar").st_mtime_ns
    pack(tmp_path, loose / "train.csv", loose / "val.csv", workers=2)
    assert contents(tmp_path) == contents(packed)
    assert os.stat(tmp_path / "train-00000.tar").st_mtime_ns == written


def test_damage_is_found(loose: Path, packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "a")
    root, name = shards.root_of(str(folder)), "c/3.avi"
    member = find(f"{root}/{name}")
    assert check_shards(folder, workers=0) == (12, [])
    with open(member.shard, "r+b") as file:
        file.seek(member.offset + 100)
        file.write(b"damage")
    shard = os.path.basename(member.shard)
    assert check_shards(folder, workers=0) == (11, [f"{shard}: {name} has other bytes than were packed"])
    script = load_script("data_prep/shards.py")
    assert script.main(["--check", str(folder), "--workers", "0"]) == 1
    for change, message in (
        (
            lambda path: os.truncate(path, member.offset),
            rf"has {member.offset} bytes, but \S+ says \d+; copy",
        ),
        (os.unlink, r"No such file or directory; copy it again"),
    ):
        other = shutil.copytree(packed, tmp_path / message[:3])
        path = str(other / shard)
        change(path)
        with pytest.raises(InputError, match=message):
            find(f"{shards.root_of(str(other))}/{name}")
        record = Record(name, f"{shards.root_of(str(other))}/{name}", 0)
        with pytest.raises(InputError, match=message):
            open_video(record)
        assert len(check_shards(other, workers=0)[1]) == 1
    (folder / INDEX).write_bytes(b"x" * 5000)
    os.rename(folder, tmp_path / "b")
    with pytest.raises(InputError, match=r"shards.sqlite cannot be read: file is not a database; copy it"):
        find(f"{shards.root_of(str(tmp_path / 'b'))}/{name}")
    with closing(sqlite3.connect(tmp_path / "b" / "other")) as foreign:
        foreign.execute("CREATE TABLE t (a)")
    os.replace(tmp_path / "b" / "other", tmp_path / "b" / INDEX)
    with pytest.raises(InputError, match="is no index of shards that this version reads"):
        find(f"{shards.root_of(str(tmp_path / 'b'))}/{name}")
    with pytest.raises(InputError, match="was not written by this script"):
        pack(tmp_path / "b", loose / "train.csv")


def test_pictures_in_shards(tmp_path: Path) -> None:
    """They are read from shards as from files, by a verification too, and have no index of packets."""
    names = [f"a b/{number}.{('JPEG', 'png')[number % 2]}" for number in range(6)]
    (tmp_path / "loose/a b").mkdir(parents=True)
    for number, name in enumerate(names):
        pixels = numbered_frame(number, (48, 64))
        Image.fromarray(pixels).save(tmp_path / "loose" / name)
    rows = [f"{name} {number % 2}\n" for number, name in enumerate([*names, "gone.jpg"])]
    (tmp_path / "loose/train.csv").write_text("".join(rows))
    (packed,) = pack(tmp_path / "packed", tmp_path / "loose/train.csv")
    assert [name for name, *_ in packed.missing] == ["gone.jpg"]
    assert not (tmp_path / "packed/packets.sqlite").exists()
    root = list_root(str(tmp_path / "packed"))
    for record in read_records(str(tmp_path / "packed/train.csv"), root=root, num_classes=2)[:-1]:
        copy = Record("", str(tmp_path / "loose" / record.name), 0)
        with open_video(record) as one, open_video(copy) as two:
            assert torch.equal(one.read([0]), two.read([0]))
    result = verify(tmp_path / "packed/train.csv", [], output_files(tmp_path / "packed/train.csv"), workers=0)
    assert (result["good"], result["warnings"]) == (6, [])
    assert [row["problem"] for row in result["bad"]] == ["missing"]


def test_verifying_shards(loose: Path, packed: Path, tmp_path: Path) -> None:
    rows = []
    for folder in (loose, packed):
        files = output_files(folder / "train.csv", tmp_path / folder.name)
        result = verify(folder / "train.csv", [folder / "val.csv"], files, workers=0)
        rows.append([result[key] for key in ("videos", "good", "bad", "hours", "bytes", "distributions")])
        assert result["copies"]
    assert rows[0] == rows[1]
    clean = read_records(str(files.clean), root="", num_classes=2)
    with open_video(clean[2]) as reader:
        assert len(reader) == 30


def test_names(tmp_path: Path) -> None:
    for name, member in (
        ("a/b c.mp4", "a/b c.mp4"),
        ("./a//b.mp4", "a/b.mp4"),
        ("a/../b.mp4", "b.mp4"),
        ("/raw/a.mp4", "raw/a.mp4"),
        ("../../raw/a.mp4", "_/_/raw/a.mp4"),
        ("//a", "a"),
    ):
        assert member_name(name) == member
    for folder in ("x", "x/lists", "_"):
        (tmp_path / folder).mkdir()
    write_video(tmp_path / "x/1.mp4", 9)
    write_video(tmp_path / "x/lists/2.mp4", 8)
    long = f"{'d' * 120}/{'f' * 120}.mp4"
    copy_video(tmp_path / "x/1.mp4", tmp_path / "x/lists" / long)
    names = ["../1.mp4", str(tmp_path / "x/1.mp4"), "./2.mp4", "2.mp4", long]
    (tmp_path / "x/lists/all.csv").write_text("".join(f"{name} 0\n" for name in names))
    pack(tmp_path / "out", tmp_path / "x/lists/all.csv")
    assert members(tmp_path / "out/all-00000.tar") == [
        "_/1.mp4",
        str(tmp_path / "x/1.mp4")[1:],
        "2.mp4",
        long,
    ]
    root = list_root(str(tmp_path / "out"), "not read")
    for name, frames in zip(names, (9, 9, 8, 8, 9), strict=True):
        with open_video(Record(name, shards.join(root, name), 0)) as reader:
            assert len(reader) == frames
    write_video(tmp_path / "x/lists/_/1.mp4", 7)
    (tmp_path / "x/lists/more.csv").write_text("../1.mp4 0\n_/1.mp4 1\n")
    with pytest.raises(InputError, match=r"would both become _/1\.mp4"):
        pack(tmp_path / "other", tmp_path / "x/lists/more.csv")
    (tmp_path / "x/lists/more.csv").write_text("_/1.mp4 1\n")
    with pytest.raises(InputError, match=r"is not the _/1\.mp4 that was packed before"):
        pack(tmp_path / "out", tmp_path / "x/lists/more.csv")
    assert check_shards(tmp_path / "out", workers=0) == (4, [])


def test_nothing_is_overwritten(loose: Path, packed: Path, tmp_path: Path) -> None:
    data = shutil.copytree(loose, tmp_path / "data")
    with pytest.raises(InputError, match="is the folder of"):
        pack(data, data / "train.csv")
    for name in ("train-00001.tar", "train.csv", "classes.txt"):
        (tmp_path / f"of {name}").mkdir()
        (tmp_path / f"of {name}" / name).write_text("mine")
        with pytest.raises(InputError, match=rf"{name} (is there|exists with other content)"):
            pack(tmp_path / f"of {name}", data / "train.csv")
        assert (tmp_path / f"of {name}" / name).read_text() == "mine"
    for folder in (tmp_path / "x", tmp_path / "y"):
        folder.mkdir()
        (folder / "train.csv").write_text(f"{data}/c/3.avi {len(folder.name)}\n")
    (tmp_path / "y/train.csv").write_text(f"{data}/c/3.avi 7\n")
    with pytest.raises(InputError, match="differ, but have one name"):
        pack(tmp_path / "out", tmp_path / "x/train.csv", tmp_path / "y/train.csv")
    # Another time with the same bytes is the same file; other bytes are not.
    out = shutil.copytree(packed, tmp_path / "again")
    os.utime(data / "c/3.avi", (1, 1))
    assert pack(out, data / "train.csv")[0].num_shards == 0
    (data / "c/3.avi").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"c/3\.avi that was packed before: another file, or changed since"):
        pack(out, data / "train.csv")
    assert {n: c for n, c in contents(out).items() if n[0] != "."} == contents(packed)
    (tmp_path / "x/train.csv").write_text("none.mp4 0\n")
    with pytest.raises(
        InputError, match=r"none of the 1 entries of .* can be read, first .*none.mp4: No such"
    ):
        pack(tmp_path / "new", tmp_path / "x/train.csv")


def test_a_file_that_changes_while_it_is_read_is_left_out(
    loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from video_iresnet.prep import shard_files

    look = shard_files.status_of

    def smaller(path: str) -> Any:
        status = look(path)
        return status._replace(size=status.size - 9) if path.endswith("2.mkv") else status

    monkeypatch.setattr(shard_files, "status_of", smaller)
    (result, _) = pack(tmp_path, loose / "train.csv", loose / "val.csv")
    assert result.missing[0] == ("a b/2.mkv", 1, "it changed while it was read")
    assert check_shards(tmp_path, workers=0) == (11, [])


def test_lists_without_labels(tmp_path: Path) -> None:
    """As UCF101's test lists."""
    write_video(tmp_path / "x/Jump/1.mp4", 9)
    (tmp_path / "x/test.txt").write_text("Jump/1.mp4\n")
    (tmp_path / "x/names").write_text("1 Run\n2 Jump\n")
    pack(tmp_path / "out", tmp_path / "x/test.txt", layout=Layout(class_names="names"))
    assert (tmp_path / "out/names").read_bytes() == (tmp_path / "x/names").read_bytes()
    assert check_shards(tmp_path / "out", workers=0) == (1, [])


def opened() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def read_some(folder: Path) -> str:
    with path_manager.open(f"{shards.root_of(str(folder))}/c/3.avi", "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _send(queue: Any, folder: Path) -> None:
    queue.put(read_some(folder))


def test_descriptors_threads_and_forks(loose: Path, packed: Path) -> None:
    expected = contents(loose)["c/3.avi"]
    assert read_some(packed) == expected
    before = opened()
    record = Record("", f"{shards.root_of(str(packed))}/a b/1.mp4", 0)
    for backend in BACKENDS:
        for _ in range(5):
            with open_video(record, backend) as reader:
                reader.read([0, 20])
    for _ in range(5):
        with pytest.raises(DecodeError):
            open_video(record._replace(path=record.path + "x"))
    found: list[str] = []
    threads = [Thread(target=lambda: found.append(read_some(packed))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    assert opened() == before
    context = get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_send, args=(queue, packed))
    process.start()
    assert queue.get() == expected
    process.join()
