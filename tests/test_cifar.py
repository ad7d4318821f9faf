"""CIFAR: each form it comes in gives the same pictures, labels and lists; hostile files do nothing."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import load_script
from numpy.typing import NDArray
from PIL import Image

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.data.decode import open_video
from video_iresnet.prep import cifar
from video_iresnet.prep.shards import check_shards
from video_iresnet.runtime.errors import InputError

main = load_script("data_prep/cifar.py").main
NAMES = ["airplane", "car", "sea_horse"]
BATCHES = {f"data_batch_{number}": 4 for number in range(1, 6)} | {"test_batch": 3}
HUNDRED = {"train": 8, "test": 3}


def pixels(name: str, count: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Pictures as rows of planes, and labels, which depend on the name alone."""
    rng = np.random.default_rng(list(name.encode()))
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, 3, count).tolist()


def pickled(hundred: bool = False) -> dict[str, bytes]:
    """The files of an official archive of pickles, as Python 2 writes them."""
    files = {}
    label, meta = ("fine_labels", "fine_label_names") if hundred else ("labels", "label_names")
    for name, count in (HUNDRED if hundred else BATCHES).items():
        data, labels = pixels(name, count)
        batch = {b"data": data, label.encode(): labels, b"coarse_labels": [0] * count}
        files[name] = pickle.dumps(batch, protocol=2)
    names = {meta.encode(): [name.encode() for name in NAMES]}
    return files | {"meta" if hundred else "batches.meta": pickle.dumps(names, protocol=2)}


def binary(hundred: bool = False) -> dict[str, bytes]:
    files = {}
    for name, count in (HUNDRED if hundred else BATCHES).items():
        data, labels = pixels(name, count)
        before = [np.zeros((count, 1), np.uint8)] * hundred + [np.array(labels, np.uint8)[:, None]]
        files[f"{name}.bin"] = np.concatenate([*before, data], axis=1).tobytes()
    names = "fine_label_names.txt" if hundred else "batches.meta.txt"
    return files | {names: ("\n".join(NAMES) + "\n\n").encode()}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def written(out: Path) -> dict[str, str]:
    """The hashes of the lists, names and shards of a folder."""
    files = [path for path in sorted(out.iterdir()) if path.suffix in (".csv", ".txt", ".tar", ".sqlite")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("hundred", [False, True])
def test_official_forms_give_the_same(
    tmp_path: Path, hundred: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    as_pickles = write_folder(tmp_path / "py", pickled(hundred))
    as_bytes = write_folder(tmp_path / "bin", binary(hundred))
    archive = write_tar(tmp_path / "mine.tar.gz", pickled(hundred))
    for number, source in enumerate((as_pickles, as_bytes, archive)):
        assert main(["--source", str(source), "--out", str(tmp_path / f"out{number}")]) == 0
    assert written(tmp_path / "out0") == written(tmp_path / "out1") == written(tmp_path / "out2")
    output = capsys.readouterr().out
    assert f"CIFAR-{'100' if hundred else '10'}, as pickles, 3 classes" in output
    assert "MODEL.NUM_CLASSES 3" in output
    assert f"train: {8 if hundred else 20} pictures (CIFAR has 50,000)" in output
    assert check_shards(tmp_path / "out0", workers=0) == (11 if hundred else 23, [])

    overrides = ["DATA.PATH_TO_DATA_DIR", str(tmp_path / "out0"), "MODEL.NUM_CLASSES", "3"]
    cfg = load_config("configs/cifar/iresnet20.yaml", overrides)
    for key, files in (
        ("DATA.TRAIN_LIST", ["train"] if hundred else list(BATCHES)[:5]),
        ("DATA.TEST_LIST", ["test" if hundred else "test_batch"]),
    ):
        parts = [pixels(name, (HUNDRED if hundred else BATCHES)[name]) for name in files]
        records = build.build_records(cfg, key)
        assert [record.label for record in records] == [label for _, labels in parts for label in labels]
        for record, row in zip(records, np.concatenate([data for data, _ in parts]), strict=True):
            assert f"/{NAMES[record.label]}/" in record.name
            with open_video(record) as reader:
                picture = reader.read([0])[0].numpy()
            assert np.array_equal(picture, row.reshape(3, 32, 32).transpose(1, 2, 0))


def pictures() -> dict[str, bytes]:
    """JPEG and PNG files in class folders, out of order."""
    files = {}
    for split, count in (("train", 3), ("test", 2)):
        for name in ("ship", "bird"):
            for number in range(count):
                data = io.BytesIO()
                picture = pixels(f"{split}{name}{number}", 1)[0].reshape(32, 32, 3)
                suffix = ("jpg", "PNG")[number % 2]
                Image.fromarray(picture).save(data, "JPEG" if suffix == "jpg" else "PNG")
                files[f"{split}/{name}/{number}.{suffix}"] = data.getvalue()
    return files | {"train/readme.md": b"?", "other/bird/1.jpg": b"?"}


def test_class_folders_and_zips_are_packed_as_they_are(tmp_path: Path) -> None:
    files = pictures()
    folder = write_folder(tmp_path / "folder", files)
    zips = tmp_path / "zips"
    zips.mkdir()
    for path, names in {
        tmp_path / "all.zip": list(files),
        zips / "train.zip": [name for name in files if "train" in name],
        zips / "test.zip": [name for name in files if "test" in name],
    }.items():
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, files[name])
    for number, source in enumerate((folder, tmp_path / "all.zip", zips)):
        assert main(["--source", str(source), "--out", str(tmp_path / f"out{number}")]) == 0
    out = tmp_path / "out0"
    assert written(out) == written(tmp_path / "out1") == written(tmp_path / "out2")
    assert (out / "classes.txt").read_text() == "bird\nship\n"
    rows = [
        f"train/{name}/{file} {label}"
        for label, name in enumerate(("bird", "ship"))
        for file in ("0.jpg", "1.PNG", "2.jpg")
    ]
    assert (out / "train.csv").read_text().splitlines() == rows
    with tarfile.open(out / "train-00000.tar") as tar:
        for member in tar:
            source = tar.extractfile(member)
            assert source
            assert source.read() == files[member.name]


def test_a_second_run_changes_nothing_and_a_begun_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_folder(tmp_path / "source", pictures()), tmp_path / "out"
    command = ["--source", str(source), "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(cifar, "write_list", lambda *_: (_ for _ in ()).throw(InputError("the disk is full")))
        assert main(command) == 1
    assert not (out / "train.csv").exists()
    assert main(command) == 0
    first = written(out)
    assert main(command) == 0
    assert written(out) == first
    (source / "train/ship/0.jpg").write_bytes((source / "train/bird/0.jpg").read_bytes())
    assert main(command) == 1
    assert f"{out} holds another train/ship/0.jpg; name another --out" in capsys.readouterr().err
    assert written(out) == first


class Hostile:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("data_batch_3", b"", "data_batch_3 cannot be read"),
        ("data_batch_3", pickle.dumps([1]), "data_batch_3 holds no dictionary"),
        ("data_batch_3", pickle.dumps({b"labels": [1]}), "does not hold pictures of 3072 bytes"),
        (
            "test_batch",
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 7]}, 2),
            "test_batch has the label 7; expected one of [0, 3)",
        ),
        ("batches.meta", None, "there is no CIFAR: 6 files, first 'data_batch_1'; expected an official"),
    ],
)
def test_damaged_files_are_one_line(
    tmp_path: Path, name: str, data: bytes | None, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pickled() | ({} if data is None else {name: data})
    if data is None:
        del files[name]
    source = write_folder(tmp_path / "source", files)
    assert main(["--source", str(source), "--out", str(tmp_path / "out")]) == 1
    assert why in capsys.readouterr().err


def test_a_pickle_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = pickle.dumps({b"data": Hostile(tmp_path / "made"), b"labels": [0]}, 2)
    source = write_folder(tmp_path / "source", pickled() | {"data_batch_1": hostile})
    assert main(["--source", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "it asks for posix.mkdir, and arrays alone are read" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_archives_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_tar(tmp_path / "cifar-10-python.tar.gz", pickled())
    command = ["--source", str(archive), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "that of the official archive c58f30108f718f92721af3b95e74349a" in capsys.readouterr().err
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.OFFICIAL_MD5, archive.name, digest)
    assert main(command) == 0
    assert "is the official archive, by its MD5" in capsys.readouterr().out
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive.read_bytes()[:-400])
    spoilt = bytearray(archive.read_bytes())
    spoilt[5000:5050] = b"?" * 50
    (tmp_path / "spoilt.tar.gz").write_bytes(spoilt)
    rar = write_folder(tmp_path / "rar", {"a.rar": b"Rar"}) / "a.rar"
    for source in (cut, tmp_path / "spoilt.tar.gz", tmp_path / "absent", rar):
        assert main(["--source", str(source), "--out", str(tmp_path / "new")]) == 1
        assert f"cannot read {source}" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as locked:
        for name, data in pictures().items():
            locked.writestr(name, data)
    marked = bytearray((tmp_path / "locked.zip").read_bytes())
    for magic, flags in ((rb"PK\x03\x04", 6), (rb"PK\x01\x02", 8)):
        for header in re.finditer(magic, bytes(marked)):
            marked[header.start() + flags] |= 1  # needs a password
    (tmp_path / "locked.zip").write_bytes(marked)
    assert main(["--source", str(tmp_path / "locked.zip"), "--out", str(tmp_path / "new")]) == 1
    assert "train/bird/0.jpg cannot be read" in capsys.readouterr().err
    monkeypatch.setattr(cifar, "LARGEST_FILE", 10_000)
    assert main(["--source", str(archive.rename(tmp_path / "a.tgz")), "--out", str(tmp_path / "new")]) == 1
    assert "bytes, more than CIFAR" in capsys.readouterr().err
