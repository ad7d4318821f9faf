"""Archives: what comes out is what went in, inside the folder, whole or not at all."""

from __future__ import annotations

import gzip
import io
import os
import signal
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import start

from video_iresnet.prep.archives import group_parts, unpack
from video_iresnet.runtime.errors import InputError


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def videos(count: int, size: int = 5000) -> dict[str, bytes]:
    """Data that does not compress."""
    return {f"v2/{number}.webm": np.random.default_rng(number).bytes(size) for number in range(count)}


def in_parts(path: Path, size: int) -> list[Path]:
    """The file in pieces, as `split -d` makes them."""
    data = path.read_bytes()
    parts = []
    for number, first in enumerate(range(0, len(data), size)):
        parts.append(path.parent / f"something-v2-{number:02d}")
        parts[-1].write_bytes(data[first : first + size])
    return parts


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder, but for the mark of who unpacks there."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path != folder / ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_parts_are_joined(tmp_path: Path) -> None:
    members = videos(9)
    parts = in_parts(write_tar(tmp_path / "all.tar.gz", members), 7001)
    assert len(parts) == 7
    assert group_parts(parts[::-1]) == [parts]
    assert unpack(parts, tmp_path / "out") == (9, 0)
    assert files(tmp_path / "out") == members
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.webm")}
    assert unpack(parts, tmp_path / "out") == (0, 9)
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_kinds_of_tar(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / "a.tar", videos(3), mode)
    assert unpack([path], tmp_path / "out") == (3, 0)
    assert files(tmp_path / "out") == videos(3)


def test_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("v2/", b"")
        for name, data in videos(3).items():
            archive.writestr(name, data)
    assert unpack([tmp_path / "a.zip"], tmp_path / "out") == (3, 0)
    assert unpack([tmp_path / "a.zip"], tmp_path / "out") == (0, 3)
    assert files(tmp_path / "out") == videos(3)


def test_parts_need_all_numbers(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b.zip", "x.tar.gz.1", "x.tar.gz.2", "y-00", "y-02")]
    for path in paths:
        path.touch()
    assert group_parts(paths[:3]) == [paths[:1], paths[1:3]]
    with pytest.raises(InputError, match=r"parts of .*y are numbered 0, 2; expected all of them"):
        group_parts(paths)
    with pytest.raises(InputError, match=r"parts of .*y are numbered 2; expected all"):
        group_parts(paths[4:])
    with pytest.raises(InputError, match=r"gone.tar is not a file"):
        group_parts([tmp_path / "gone.tar"])


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/tmp/evil-of-the-archive", "..\\evil", "C:\\evil", "a/..", "link/evil"],
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_nothing_is_written_outside(tmp_path: Path, name: str, kind: str) -> None:
    """By name, or through a link that stands in the folder."""
    out = tmp_path / "deep/out"
    out.mkdir(parents=True)
    (out / "link").symlink_to(tmp_path)
    if kind == "tar":
        path = write_tar(tmp_path / "a.tar", {name: b"x"})
    else:
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"x")
    with pytest.raises(InputError, match=r"^[^\n]*would be written outside of [^\n]*$"):
        unpack([path], out)
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/tmp/evil-of-the-archive").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("x.webm")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(InputError, match=r"x.webm in .*a.tar is a link or a device"):
        unpack([tmp_path / "a.tar"], tmp_path / "out")
    assert files(tmp_path / "out") == {}


def test_tars_in_a_tar(tmp_path: Path) -> None:
    """On request, the members of each go into a folder of its name, and nowhere else."""
    inner = {name: write_tar(tmp_path / "x", videos(2), "w").read_bytes() for name in ("a.tar", "b/c.tar")}
    path = write_tar(tmp_path / "all.tar", inner | {"d": b"d"}, "w")
    assert unpack([path], tmp_path / "plain") == (3, 0)
    assert unpack([path], tmp_path / "out", inner=True) == (5, 0)
    assert unpack([path], tmp_path / "out", inner=True) == (0, 5)
    expected = {f"{folder}/{name}": data for folder in ("a", "b/c") for name, data in videos(2).items()}
    assert files(tmp_path / "out") == expected | {"d": b"d"}
    for outer, name, why in (
        ("a.tar", "../evil", "would be written outside"),
        ("../evil.tar", "x", "would be written outside"),
        (".partial.tar", "x", "has a name that is needed"),
    ):
        data = write_tar(tmp_path / "x", {name: b"x"}, "w").read_bytes()
        with pytest.raises(InputError, match=why):
            unpack([write_tar(tmp_path / "bad.tar", {outer: data}, "w")], tmp_path / "new", inner=True)
    assert not list(tmp_path.rglob("*evil*"))


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x.webm")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match=r"x.webm in .*a.zip is a link or a device"):
        unpack([tmp_path / "a.zip"], tmp_path / "out")


def test_what_stands_there_is_not_overwritten(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", videos(3))
    kept = tmp_path / "out/v2/1.webm"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"mine")
    with pytest.raises(
        InputError, match=r"1.webm is there with another size than the 5,000 bytes .*; move it away"
    ):
        unpack([path], tmp_path / "out")
    assert kept.read_bytes() == b"mine"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("left", [0.1, 0.5, 0.94])
def test_an_incomplete_archive_is_told(tmp_path: Path, mode: str, left: float) -> None:
    """The last part was not downloaded; what is before it is unpacked."""
    path = write_tar(tmp_path / "a.tar", videos(40), mode)
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(
        InputError,
        match=r"^[^\n]*a.tar is incomplete or damaged: [^\n]+; download it again, what is unpacked is kept$",
    ):
        unpack([path], tmp_path / "out")
    assert files(tmp_path / "out").items() <= videos(40).items()


def test_a_tar_that_ends_between_two_members_is_incomplete(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", videos(4, size=512), "w")
    path.write_bytes(path.read_bytes()[: 2 * 1024])
    with pytest.raises(InputError, match=r"incomplete or damaged: its end is missing"):
        unpack([path], tmp_path / "out")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_damaged_archive_is_told(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / "a.tar", videos(40), mode)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(
        InputError,
        match=r"^[^\n]*is damaged: [^\n]+; download it again, and unpack into another folder: [^\n]+$",
    ):
        unpack([path], tmp_path / "out")
    (tmp_path / "text.tar").write_text("no archive at all")
    with pytest.raises(InputError, match=r"^[^\n]*text.tar is damaged: [^\n]+$"):
        unpack([tmp_path / "text.tar"], tmp_path / "out")


UNPACK = """
import sys, time
from pathlib import Path
from video_iresnet.prep import archives
if "slow" in sys.argv:
    copy = archives.shutil.copyfileobj
    def slowly(source, file, size):
        file.write(source.read(3000)); file.flush(); time.sleep(0.05)
        copy(source, file, size)
    archives.shutil.copyfileobj = slowly
print(archives.unpack([Path(sys.argv[1])], Path(sys.argv[2])))
"""


def test_kill_while_unpacking_then_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", videos(30))
    out = tmp_path / "out"
    process = start("-c", UNPACK, str(path), str(out), "slow")
    while len(list(out.glob("v2/*.webm"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    while not (out / ".partial/member").exists():  # in the middle of a member
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = files(out)
    assert len(there.pop(".partial/member")) < 5000
    assert there.items() < videos(30).items()
    text = start("-c", UNPACK, str(path), str(out)).communicate()[0]
    assert f"written={30 - len(there)}, kept={len(there)}" in text
    assert files(out) == videos(30)


def test_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files fails the same way: what is whole stays, nothing half-written does."""
    path = write_tar(tmp_path / "a.tar", {"a": b"1" * 1000, "b": b"2" * 100000})
    code = f"""
import resource, signal
from pathlib import Path
from video_iresnet.prep.archives import unpack
from video_iresnet.runtime.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))
try:
    unpack([Path({os.fspath(path)!r})], Path({os.fspath(tmp_path / "out")!r}))
except InputError as error:
    print(error)
"""
    text = start("-c", code).communicate()[0]
    assert (
        text.strip() == f"cannot write {tmp_path / 'out/b'}: File too large; make room and start again, "
        "what is unpacked is kept"
    )
    assert files(tmp_path / "out") == {"a": b"1" * 1000}


@pytest.mark.parametrize("kind", ["zip", "w:gz", "w:bz2", "w:xz"])
def test_a_small_archive_of_much_is_refused(tmp_path: Path, kind: str) -> None:
    """It is allowed 20 times its size and 1 MiB, and more where a larger limit is given."""
    path, data = tmp_path / "a", bytes(4 << 20)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.webm", data)
    else:
        write_tar(path, {"a.webm": data}, kind)
    with pytest.raises(
        InputError, match=r"^[^\n]*a unpacks to more than 20 times its size; [^\n]*--max-expansion$"
    ):
        unpack([path], tmp_path / "out")
    assert files(tmp_path / "out") == {}
    times = len(data) / path.stat().st_size
    assert unpack([path], tmp_path / "out", max_expansion=2 * times) == (1, 0)
    assert files(tmp_path / "out") == {"a.webm": data}


def test_zeros_behind_the_end_of_a_tar_count(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tgz", videos(1))
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(4 << 20)))
    with pytest.raises(InputError, match="unpacks to more than 20 times its size"):
        unpack([path], tmp_path / "out")


def test_only_one_process_unpacks_into_a_folder(tmp_path: Path) -> None:
    """The second is refused, and the first goes on undisturbed."""
    path = write_tar(tmp_path / "a.tar.gz", videos(30))
    out = tmp_path / "out"
    first = start("-c", UNPACK, str(path), str(out), "slow")
    while not (out / ".partial/member").exists():
        assert first.poll() is None
        time.sleep(0.001)
    with pytest.raises(InputError, match=rf"out is in use by process {first.pid} "):
        unpack([path], out)
    text = first.communicate()[0]
    assert "written=30, kept=0" in text
    assert files(out) == videos(30)
