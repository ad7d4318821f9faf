"""ImageNet (ILSVRC2012) as it is distributed: its images, its classes, and the class of each image."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ..data.decode.image import SUFFIXES
from ..runtime.errors import InputError, missing_extra, reason
from ..runtime.storage import read_lines
from .archives import DAMAGE, md5_of
from .lists import find_videos

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12"
OFFICIAL_BYTES = {"train": 147_897_477_120, "val": 6_744_924_160}
OFFICIAL_IMAGES = {"train": 1_281_167, "val": 50_000}
# SHA-256 of the 1,000 synsets of ILSVRC2012 in their order, one a line, as in timm's imagenet_synsets.txt.
SYNSETS_SHA256 = "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15"
SYNSET = re.compile(r"n\d{8}")
# Where the folders train and val are: ours and torchvision's, then those of Kaggle's archive.
ROOTS = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
MAPPING, SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"  # Kaggle's
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"  # of the devkit
LARGEST = 2**27  # bytes of a file of the devkit


class Annotations(NamedTuple):
    """What the files beside the images say: the words for each synset, and the synset of each validation
    image, by its name without ending. Empty where no file says it.
    """

    words: dict[str, str]
    val: dict[str, str]


class Images(NamedTuple):
    """The images of a folder with their synsets, as paths below it; empty files; images of no class."""

    entries: list[tuple[str, str]]
    empty: list[str]
    outside: list[str]


class Classes(NamedTuple):
    """Synsets in the order of their labels, their names, and whether they are the 1,000 of ILSVRC2012."""

    synsets: list[str]
    names: list[str]
    is_official: bool


def images_folder(source: Path, split: str) -> Path | None:
    """Return the folder of a split's images, if there is one."""
    return next((source / root / split for root in ROOTS if (source / root / split).is_dir()), None)


def archive_to_unpack(source: Path, split: str, target: Path) -> Path | None:
    """Return the archive of a split that is to be unpacked into `target`: none where its images are in a
    folder of `source` already, unless that is `target`, where an earlier run may have been stopped.
    """
    archive, folder = source / ARCHIVES[split], images_folder(source, split)
    if folder and (not target.is_dir() or not folder.samefile(target)):
        return None
    if folder and split == "val" and any(SYNSET.fullmatch(path.name) for path in folder.iterdir()):
        return None  # the archive has no folders: somebody sorted its images
    return archive if archive.is_file() else None


def check_archive(path: Path, kind: str) -> str:
    """Return what is known of an archive, `kind` train, val or devkit: whether it is the official one, by the
    MD5 that torchvision has. Raises InputError if it has the official size but other bytes.
    """
    from torchvision.datasets.imagenet import ARCHIVE_META

    official, size = ARCHIVE_META[kind][1], path.stat().st_size
    expected = OFFICIAL_BYTES.get(kind, size)
    if size != expected:
        return f"{path} has {size:,} bytes and the official file {expected:,}: it is taken for a subset"
    found = md5_of(path)
    if found == official:
        return f"{path} is the official file, by its MD5"
    if kind in OFFICIAL_BYTES:
        raise InputError(
            f"{path} has the size of the official file, but the MD5 {found}; expected {official}; "
            "download it again"
        )
    return f"{path} is not the official file: its MD5 is {found}, not {official}"


def read_annotations(source: Path) -> Annotations:
    """Read Kaggle's files or those of the devkit, extracted or as an archive. Raises InputError, with file
    and line.
    """
    words = read_mapping(source / MAPPING) if (source / MAPPING).is_file() else {}
    val = read_solution(source / SOLUTION) if (source / SOLUTION).is_file() else {}
    if words and val:
        return Annotations(words, val)
    devkit = _read_devkit(source)
    return Annotations(words or devkit.words, val or devkit.val)


def read_mapping(path: Path) -> dict[str, str]:
    """Read Kaggle's `synset words` lines."""
    words = {}
    for number, line in enumerate(read_lines(str(path)), 1):
        match = re.fullmatch(rf"\s*({SYNSET.pattern})\s+(\S.*?)\s*", line)
        if match:
            words[match[1]] = match[2]
        elif line.strip():
            raise InputError(f"line {number} of {path} is {line!r}; expected `n01440764 tench, Tinca tinca`")
    return words


def read_solution(path: Path) -> dict[str, str]:
    """Read Kaggle's classes of validation images, `name,synset x y x y ...` after a header."""
    rows = csv.reader(read_lines(str(path)))
    synsets = {}
    for row in rows:
        match = SYNSET.match(row[1]) if len(row) == 2 else None
        if match:
            synsets[row[0]] = match[0]
        elif row and rows.line_num > 1:
            raise InputError(
                f"line {rows.line_num} of {path} is {','.join(row)!r}; expected "
                "`ILSVRC2012_val_00000001,n01751748 111 108 230 366`"
            )
    return synsets


def _read_devkit(source: Path) -> Annotations:
    folder = next((path for path in (source / DEVKIT, source) if (path / META).is_file()), None)
    archive = source / f"{DEVKIT}.tar.gz"
    if folder:
        meta = (folder / META).read_bytes()
        truth = (folder / TRUTH).read_bytes() if (folder / TRUTH).is_file() else b""
    elif archive.is_file():
        folder = archive
        meta, truth = _contents(archive, [f"{DEVKIT}/{META}", f"{DEVKIT}/{TRUTH}"])
    else:
        return Annotations({}, {})
    synsets = read_meta(meta, f"{folder}/{META}")
    val = {}
    for number, line in enumerate(truth.decode("ascii", "replace").splitlines(), 1):
        # The numbers are those of the devkit, which are not in the order of the synsets.
        found = synsets.get(int(line)) if re.fullmatch(r"\s*\d{1,6}\s*", line) else None
        if found is None:
            raise InputError(
                f"line {number} of {folder}/{TRUTH} is {line!r}; expected an ILSVRC2012_ID of {META}"
            )
        val[f"ILSVRC2012_val_{number:08d}"] = found[0]
    return Annotations(dict(synsets.values()), val)


def _contents(archive: Path, names: Sequence[str]) -> list[bytes]:
    """Return the contents of files in a tar."""
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = str(PurePosixPath(member.name))
                if name in names and member.isreg() and member.size <= LARGEST:
                    file = tar.extractfile(member)
                    assert file
                    found[name] = file.read()
    except DAMAGE as error:
        raise InputError(f"{archive} is damaged: {reason(error)}; download it again") from error
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{archive} does not hold {missing[0]}; download the devkit again")
    return [found[name] for name in names]


def read_meta(data: bytes, name: str) -> dict[int, tuple[str, str]]:
    """Read the devkit's meta.mat: ILSVRC2012_ID -> (synset, words) of those that are classes, which have no
    children. `name`: for errors.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise missing_extra(f"reading {name}", "prep", error) from error
    try:
        table = loadmat(io.BytesIO(data), variable_names=["synsets"], squeeze_me=True)["synsets"]
        synsets = {
            int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"]))
            for row in np.atleast_1d(table)
            if int(row["num_children"]) == 0
        }
    except Exception as error:  # damaged bytes make scipy's reader fail in any way
        raise InputError(f"{name} cannot be read ({reason(error)}); take it from the devkit again") from error
    if not synsets or not all(SYNSET.fullmatch(synset) for synset, _ in synsets.values()):
        raise InputError(f"{name} does not name synsets such as n01440764; take it from the devkit again")
    return synsets


def find_images(
    folder: Path, split: str, annotations: Annotations, workers: int, ray_address: str | None = None
) -> Images:
    """Find the images of a split: in folders of synsets, those of the validation also in none.

    Raises InputError for a validation image whose class is said nowhere, or differently in two places.
    """
    found = find_videos(folder, workers, ray_address, suffixes=SUFFIXES)
    images = Images([], found.empty, [])
    for path in found.videos:
        top, slash, _ = path.partition("/")
        own = top if slash and SYNSET.fullmatch(top) else ""
        said = annotations.val.get(PurePosixPath(path).stem, "") if split == "val" else ""
        if own and said and own != said:
            raise InputError(
                f"{folder / path} is in the folder {own}, but its class is {said} by the annotations; sort "
                "the validation images again"
            )
        if own or said:
            images.entries.append((path, own or said))
        elif split == "val" and not slash:
            raise InputError(
                f"the class of {folder / path} is in no annotations; put {DEVKIT}.tar.gz or {SOLUTION} "
                "into --source"
            )
        else:
            images.outside.append(path)
    return images


def number_classes(words: Mapping[str, str], found: Iterable[str]) -> Classes:
    """Return the classes: the synsets that have words, else those found, in alphabetical order, which is that
    of torchvision's ImageFolder and of all published networks. The names of the official 1,000 are
    torchvision's, those of others their words, or else the synsets. Raises InputError for a synset without
    words.
    """
    found = set(found)
    synsets = sorted(words or found)
    if unknown := sorted(found.difference(synsets)):
        raise InputError(
            f"the folder {unknown[0]} is none of the {len(synsets):,} classes of the annotations; take it out"
        )
    text = "".join(f"{synset}\n" for synset in synsets)
    if hashlib.sha256(text.encode()).hexdigest() != SYNSETS_SHA256:
        return Classes(synsets, [words.get(synset, synset) for synset in synsets], False)
    from torchvision.models import ResNet50_Weights

    return Classes(synsets, list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"]), True)
