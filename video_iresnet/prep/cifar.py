"""Read CIFAR-10 and CIFAR-100 in each form they come in, and pack their pictures into shards."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..runtime.errors import InputError, reason
from .archives import DAMAGE, md5_of
from .lists import held_folder, write_class_names, write_list
from .shard_files import write_members
from .shard_index import Catalogue

SIDE = 32  # pixels
PIXELS = 3 * SIDE**2
# https://www.cs.toronto.edu/~kriz/cifar.html
OFFICIAL_MD5 = {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
}
LARGEST_FILE = 2**28  # bytes; the largest official one has 154 MB
FORMS = (
    "an official archive (python or binary) or its folder, or zips or a folder of train/CLASS/*.jpg and "
    "test/CLASS/*.jpg"
)
Files = Mapping[str, Callable[[], bytes]]  # the files of a source: name -> what reads it


class Picture(NamedTuple):
    """The bytes of a JPEG, PNG or WebP file, its name and its label."""

    name: str
    label: int
    data: bytes


class Form(NamedTuple):
    """An official form: the files of each split, the file of the class names, and where a label is: the key
    in a pickle, or the number of bytes before a picture, of which the last one is the label.
    """

    title: str
    splits: Mapping[str, Sequence[str]]
    names: str
    names_key: str = ""
    label_key: str = ""
    label_bytes: int = 0


BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
OFFICIAL = (
    Form(
        "CIFAR-10, as pickles",
        {"train": BATCHES, "test": ["test_batch"]},
        "batches.meta",
        names_key="label_names",
        label_key="labels",
    ),
    Form(
        "CIFAR-100, as pickles",
        {"train": ["train"], "test": ["test"]},
        "meta",
        names_key="fine_label_names",
        label_key="fine_labels",
    ),
    Form(
        "CIFAR-10, as bytes",
        {"train": [f"{name}.bin" for name in BATCHES], "test": ["test_batch.bin"]},
        "batches.meta.txt",
        label_bytes=1,
    ),
    Form(
        "CIFAR-100, as bytes",
        {"train": ["train.bin"], "test": ["test.bin"]},
        "fine_label_names.txt",
        label_bytes=2,
    ),
)


class Cifar(NamedTuple):
    """What a source holds: its form, the class names, and the pictures of each split."""

    title: str
    names: list[str]
    splits: dict[str, Iterable[Picture]]


def check_md5(source: Path) -> str:
    """Compare an archive with the official one of its name; return what was found, or nothing for other
    names. Raises InputError if it differs.
    """
    expected = OFFICIAL_MD5.get(source.name)
    if expected is None or source.is_dir():
        return ""
    try:
        found = md5_of(source)
    except OSError as error:
        raise InputError(f"cannot read {source}: {reason(error)}") from error
    if found != expected:
        raise InputError(
            f"the MD5 of {source} is {found}, that of the official archive {expected}; download it again, or "
            "rename it if it is to differ"
        )
    return f"{source} is the official archive, by its MD5"


@contextmanager
def opened(source: Path) -> Iterator[Files]:
    """Open a folder with the zips in it, a zip or a tar file, while the block runs. Raises InputError."""
    with ExitStack() as stack:
        try:
            if source.is_dir():
                files: dict[str, Callable[[], bytes]] = {}
                for path in sorted(path for path in source.rglob("[!.]*") if path.is_file()):
                    if path.suffix == ".zip":
                        files |= _zip_files(stack.enter_context(zipfile.ZipFile(path)))
                    else:
                        files[path.relative_to(source).as_posix()] = path.read_bytes
            elif zipfile.is_zipfile(source):
                files = _zip_files(stack.enter_context(zipfile.ZipFile(source)))
            else:
                files = _tar_files(source)
            yield files
        except DAMAGE as error:
            raise InputError(f"cannot read {source}: {reason(error)}; expected {FORMS}") from error


def _zip_files(archive: zipfile.ZipFile) -> dict[str, Callable[[], bytes]]:
    def reader(member: zipfile.ZipInfo) -> Callable[[], bytes]:
        _check_size(member.filename, member.file_size)

        def read() -> bytes:
            try:
                return archive.read(member)
            except RuntimeError as error:  # a password or an unknown compression
                raise InputError(
                    f"{member.filename} cannot be read: {reason(error)}; unpack the zip with another program"
                ) from error

        return read

    return {member.filename: reader(member) for member in archive.infolist() if not member.is_dir()}


def _tar_files(path: Path) -> dict[str, Callable[[], bytes]]:
    """Read all of a tar file, as its compression allows no other order."""
    files: dict[str, Callable[[], bytes]] = {}
    size = 0
    with tarfile.open(path) as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isreg() else None
            if source:
                size += member.size
                _check_size(member.name, size)
                files[member.name] = io.BytesIO(source.read()).getvalue
    return files


def _check_size(name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise InputError(f"{name} has {size:,} bytes, more than CIFAR; expected {FORMS}")


def read_cifar(files: Files) -> Cifar:
    """Find out which form files are in. Raises InputError if it is none, or if one is damaged."""
    by_name = {PurePosixPath(name).name: read for name, read in files.items()}
    for form in OFFICIAL:
        if {form.names, *form.splits["train"], *form.splits["test"]} <= by_name.keys():
            names = _class_names(form, by_name)
            return Cifar(
                form.title,
                names,
                {split: _official(form, split, names, by_name) for split in form.splits},
            )
    pattern = re.compile(r"(?:.*/)?(train|test)/([^/]+)/([^/]+\.(?:jpe?g|png|webp))", re.IGNORECASE)
    found = [match for match in map(pattern.fullmatch, sorted(files)) if match]
    splits = {split: [match for match in found if match[1] == split] for split in ("train", "test")}
    names = sorted({match[2] for match in found})
    if not all(splits.values()):
        raise InputError(
            f"there is no CIFAR: {len(files):,} files, first {min(files, default='')!r}; expected {FORMS}"
        )

    def pictures(matches: Sequence[re.Match[str]]) -> Iterator[Picture]:
        for match in matches:
            yield Picture("/".join(match.groups()), names.index(match[2]), files[match[0]]())

    return Cifar("pictures in class folders", names, {split: pictures(of) for split, of in splits.items()})


def _class_names(form: Form, files: Files) -> list[str]:
    data = files[form.names]()
    if not form.names_key:
        return data.decode("utf-8", "replace").split()
    found = _unpickled(form.names, data).get(form.names_key.encode(), [])
    return [bytes(name).decode("utf-8", "replace") for name in found]


def _official(form: Form, split: str, names: Sequence[str], files: Files) -> Iterator[Picture]:
    """Yield the pictures of a split as PNG files, numbered in the official order."""
    number = 0
    for file in form.splits[split]:
        read = _pickled_batch if form.label_key else _binary_batch
        pictures, labels = read(form, file, files[file]())
        for pixels, label in zip(pictures, labels, strict=True):
            if not 0 <= label < len(names):
                raise InputError(
                    f"{file} has the label {label}; expected one of [0, {len(names)}), the names"
                )
            planes = pixels.reshape(3, SIDE, SIDE).transpose(1, 2, 0)
            png = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(planes)).save(png, "PNG")
            yield Picture(f"{split}/{names[label]}/{number:05d}.png", label, png.getvalue())
            number += 1


def _pickled_batch(form: Form, file: str, data: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    batch = _unpickled(file, data)
    pixels, labels = batch.get(b"data"), batch.get(form.label_key.encode())
    if (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and isinstance(labels, list)
        and pixels.shape == (len(labels), PIXELS)
        and all(type(label) is int for label in labels)
    ):
        return pixels, labels
    raise InputError(f"{file} does not hold pictures of {PIXELS} bytes, and as many labels; take it again")


def _binary_batch(form: Form, file: str, data: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    row = form.label_bytes + PIXELS
    if len(data) % row:
        raise InputError(f"{file} has {len(data):,} bytes; expected a multiple of {row:,}, take it again")
    rows = np.frombuffer(data, np.uint8).reshape(-1, row)
    return rows[:, form.label_bytes :], rows[:, form.label_bytes - 1].tolist()


class _Unpickler(pickle.Unpickler):
    """Knows arrays alone, so that a file cannot run anything."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and arrays alone are read")


def _unpickled(file: str, data: bytes) -> dict[bytes, Any]:
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise InputError(f"{file} cannot be read: {reason(error)}; take it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} holds no dictionary; take it again")
    return found


def pack(cifar: Cifar, out: Path) -> dict[str, int]:
    """Write a shard and a list for each split, and classes.txt; return the number of pictures of each. What
    is there already stays, and a killed run is started again. Raises InputError if `out` has other pictures.
    """
    counts = {}
    with held_folder(out), closing(Catalogue(out)) as catalogue:
        write_class_names(out / "classes.txt", cifar.names)
        for split, pictures in cifar.splits.items():
            entries, new = [], []
            for picture in tqdm(pictures, desc=split, disable=None):
                entries.append((picture.name, picture.label))
                row = catalogue.find(picture.name)
                if row is None:
                    new.append((picture.name, picture.data))
                elif row.sha256 != hashlib.sha256(picture.data).digest():
                    raise InputError(f"{out} holds another {picture.name}; name another --out")
            if new:
                (name,) = catalogue.begin([split])
                written = write_members(str(out / name), new)
                catalogue.complete(name, written.size, written.rows)
            write_list(out / f"{split}.csv", entries)
            counts[split] = len(entries)
        catalogue.finish()
    return counts
