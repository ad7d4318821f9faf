"""ImageNet as it is distributed -> lists with the labels of published networks; a checkpoint in the layout of
the authors' files is tested on it, to the numbers of an independent computation.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import ROOT, RunNet
from PIL import Image
from scipy.io import savemat
from test_archives import write_tar
from test_prep import Script, listed, next_command, one_line, script
from torch import Tensor
from torchvision.transforms import v2

from video_iresnet.engine.aggregate import pool
from video_iresnet.engine.views import ViewStore
from video_iresnet.models import create_model
from video_iresnet.prep import imagenet
from video_iresnet.prep.imagenet import Annotations, number_classes

__all__ = ["script"]  # a fixture
CONFIG = str(ROOT / "configs/imagenet/iresnet50.yaml")
# The devkit numbers classes in another order than the alphabetical one, and has inner nodes of WordNet.
WORDS = {"n03000001": "crane", "n01000002": "tench, Tinca tinca", "n02000003": "crane, bird"}
ORDER = sorted(WORDS)
TRAIN = dict.fromkeys(WORDS, 3)
VAL = ["n02000003", "n03000001", "n01000002", "n03000001", "n02000003"]  # the classes of images 1 to 5


def picture(number: int) -> bytes:
    """A JPEG of noise in a size of its own."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((260 + 31 * (number % 3), 230 + 50 * (number % 4))).save(file, "JPEG", quality=95)
    return file.getvalue()


def train_images() -> dict[str, bytes]:
    names = [f"{synset}/{synset}_{number}.JPEG" for synset in WORDS for number in range(TRAIN[synset])]
    return {name: picture(number) for number, name in enumerate(names)}


def val_images() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{number:08d}.JPEG": picture(100 + number) for number in range(1, len(VAL) + 1)}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def devkit_files() -> dict[str, bytes]:
    """meta.mat as MATLAB has it: a column of structures, leaves first."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, *item, "a gloss", 0) for number, item in enumerate(WORDS.items(), 1)]
    rows.append((len(rows) + 1, "n00001740", "entity", "a gloss", 3))
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(rows, kind)[:, None], "other": [1, 2]})
    numbers = [list(WORDS).index(synset) + 1 for synset in VAL]
    truth = "".join(f"{number}\n" for number in numbers)
    start = "ILSVRC2012_devkit_t12/data"
    return {
        f"{start}/meta.mat": file.getvalue(),
        f"{start}/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        "ILSVRC2012_devkit_t12/readme.txt": b"",
    }


def write_archives(folder: Path) -> None:
    """The three files that are downloaded."""
    folder.mkdir()
    inner = {}
    for synset in WORDS:
        images = {n.split("/")[1]: data for n, data in train_images().items() if n.startswith(synset)}
        inner[f"{synset}.tar"] = write_tar(folder / "inner.tar", images, "w").read_bytes()
    (folder / "inner.tar").unlink()
    write_tar(folder / "ILSVRC2012_img_train.tar", inner, "w")
    write_tar(folder / "ILSVRC2012_img_val.tar", val_images(), "w")
    write_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit_files())


def expected(split: str, folder: Path | None = None) -> list[tuple[str, int]]:
    """The entries of a list of the images below a folder, or below that of the list."""
    if split == "train":
        rows = [(name, ORDER.index(name.split("/")[0])) for name in sorted(train_images())]
    else:
        rows = [(name, ORDER.index(synset)) for name, synset in zip(val_images(), VAL, strict=True)]
    return [(str((folder or Path()) / split / name), label) for name, label in rows]


def test_archives_are_unpacked_and_labelled(tmp_path: Path, script: Script) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_archives(source)
    before = {path: path.stat().st_mtime_ns for path in source.iterdir()}
    code, text, error = script("imagenet", "--source", source, "--out", out)
    assert (code, error) == (0, "")
    for split in ("train", "val"):
        assert listed(out / f"{split}.csv") == expected(split)
    for name, data in train_images().items():
        assert (out / "train" / name).read_bytes() == data
    assert (out / "classes.txt").read_text() == "tench, Tinca tinca\ncrane, bird\ncrane\n"
    for words in (
        "official file 147,897,477,120: it is taken for a subset",
        "is not the official file: its MD5 is ",
        "9 files unpacked",
        "3 classes, which are not the 1,000 of ILSVRC2012, labels 0 to 2",
        "train: 9 images of 3 classes -> ",
    ):
        assert words in text
    assert next_command(text)[-3:] == [str(out), "MODEL.NUM_CLASSES", "3"]
    assert before == {path: path.stat().st_mtime_ns for path in source.iterdir()}
    (out / "train/n01000002/n01000002_1.JPEG").unlink()
    lists = (out / "train.csv").read_bytes(), (out / "val.csv").read_bytes()
    code, text, _ = script("imagenet", "--source", source, "--out", out)
    assert code == 0
    assert "1 files unpacked" in text
    assert ((out / "train.csv").read_bytes(), (out / "val.csv").read_bytes()) == lists


def test_a_stopped_unpacking_beside_the_archives_goes_on(tmp_path: Path, script: Script) -> None:
    """With --out SOURCE, the folder that is there may be half of it."""
    write_archives(tmp_path / "a")
    write_files(tmp_path / "a/train", dict(list(train_images().items())[:2]))
    code, text, _ = script("imagenet", "--source", tmp_path / "a", "--out", tmp_path / "a")
    assert code == 0
    assert "7 files unpacked" in text
    assert listed(tmp_path / "a/train.csv") == expected("train")
    assert script("imagenet", "--source", tmp_path / "a", "--out", tmp_path / "b")[0] == 0
    assert listed(tmp_path / "b/val.csv") == expected("val", tmp_path / "a")
    assert not (tmp_path / "b/train").exists()


def test_sorted_folders(tmp_path: Path, script: Script) -> None:
    """Synset folders alone, as the usual script leaves them; with Kaggle's names of the classes, a subset has
    their labels.
    """
    source = tmp_path / "source"
    write_files(source / "train", {n: d for n, d in train_images().items() if not n.startswith("n02")})
    sorted_val = {f"{s}/{n}": d for (n, d), s in zip(val_images().items(), VAL, strict=True)}
    write_files(source / "val", {n: d for n, d in sorted_val.items() if not n.startswith("n02")})
    write_files(source, {"train/x.jpg": b"a", "train/more/y.png": b"a", "val/n01000002/z.JPEG": b""})
    code, text, _ = script("imagenet", "--source", source, "--out", source)
    assert code == 0
    assert (source / "classes.txt").read_text() == "n01000002\nn03000001\n"
    assert {label for _, label in listed(source / "train.csv")} == {0, 1}
    for words in (
        "for labels among the 1,000, put LOC_synset_mapping.txt or",
        "train: 2 images in no folder of a synset are passed over; the first is more/y.png",
        "val: 1 empty files are passed over; the first is n01000002/z.JPEG",
    ):
        assert words in text
    mapping = "".join(f"{synset} {words}\n" for synset, words in WORDS.items())
    (source / "LOC_synset_mapping.txt").write_text(mapping)
    assert script("imagenet", "--source", source, "--out", tmp_path / "out")[0] == 0
    labels = {Path(name).parent.name: label for name, label in listed(tmp_path / "out/train.csv")}
    assert labels == {"n01000002": 0, "n03000001": 2}
    assert one_line(
        script("imagenet", "--source", source, "--out", source)[2], "classes.txt exists with other content"
    )


def test_kaggles_layout(tmp_path: Path, script: Script) -> None:
    source = tmp_path / "source"
    write_files(source / "ILSVRC/Data/CLS-LOC/train", train_images())
    write_files(source / "ILSVRC/Data/CLS-LOC/val", val_images())
    write_files(source / "ILSVRC/Data/CLS-LOC/test", {"ILSVRC2012_test_00000001.JPEG": b"a"})
    mapping = "".join(f"{synset} {words}\n" for synset, words in WORDS.items())
    names = [name.removesuffix(".JPEG") for name in val_images()]
    rows = [f"{name},{s} 1 2 3 4 {s} 5 6 7 8 \n" for name, s in zip(names, VAL, strict=True)]
    (source / "LOC_synset_mapping.txt").write_text(mapping)
    solution = source / "LOC_val_solution.csv"
    solution.write_text("".join(["ImageId,PredictionString\n", *rows[::-1]]))
    assert script("imagenet", "--source", source, "--out", tmp_path / "out")[0] == 0
    for split in ("train", "val"):
        start = source / "ILSVRC/Data/CLS-LOC"
        assert listed(tmp_path / f"out/{split}.csv") == expected(split, start)
    solution.write_text(rows[0] + "ILSVRC2012_val_00000002;n01000002\n")
    command = ("imagenet", "--source", source, "--out", tmp_path / "new")
    assert one_line(script(*command)[2], "line 2 of", "expected `ILSVRC2012_val_00000001,n01751748 111")
    solution.write_text(rows[0])
    assert one_line(script(*command)[2], "ILSVRC2012_val_00000002.JPEG is in no annotations; put")
    (source / "LOC_synset_mapping.txt").write_text(mapping + "tench\n")
    assert one_line(script(*command)[2], "line 4 of", "'tench'; expected `n01440764 tench, Tinca tinca`")


def test_contradictions_are_refused(tmp_path: Path, script: Script) -> None:
    command = ("imagenet", "--source", tmp_path / "a", "--out", tmp_path / "out")
    (tmp_path / "a").mkdir()
    assert one_line(script(*command)[2], "a holds neither folders train and val, nor ILSVRC2012_")
    write_files(tmp_path / "a", {"train/cats/1.jpg": b"a"})
    assert one_line(script(*command)[2], "holds no images in folders such as n01440764; correct --source")
    write_files(tmp_path / "a", {"train/n01000002/1.jpg": b"a", "val/1.JPEG": b"a"})
    assert one_line(script(*command)[2], "val/1.JPEG is in no annotations")
    (tmp_path / "a/val/1.JPEG").unlink()
    write_files(tmp_path / "a", devkit_files())
    write_files(tmp_path / "a/val", {"n01000002/ILSVRC2012_val_00000001.JPEG": b"a"})
    assert one_line(script(*command)[2], "is in the folder n01000002, but its class is n02000003")
    (tmp_path / "a/val/n01000002/ILSVRC2012_val_00000001.JPEG").rename(tmp_path / "a/val/n01000002/1.JPEG")
    assert script(*command)[0] == 0
    write_files(tmp_path / "a", {"train/n09999999/1.jpg": b"a"})
    assert one_line(script(*command)[2], "the folder n09999999 is none of the 3 classes")


def test_devkits_that_cannot_be_read(tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    write_archives(source)
    devkit = source / "ILSVRC2012_devkit_t12.tar.gz"
    command = ("imagenet", "--source", source, "--out", tmp_path / "out")
    whole, files = devkit.read_bytes(), devkit_files()
    meta, truth, _ = files
    devkit.write_bytes(whole[: len(whole) // 2])
    assert one_line(script(*command)[2], "ILSVRC2012_devkit_t12.tar.gz is damaged")
    for changed, why in (
        ({meta: files[meta][:300]}, "meta.mat cannot be read ("),
        ({meta: b""}, "meta.mat cannot be read ("),
        ({truth: b"1\n9\n"}, "line 2 of", ),
        ({truth: b"1\nx\n"}, "line 2 of", ),
    ):  # fmt: skip
        write_tar(devkit, files | changed)
        assert one_line(script(*command)[2], why)
    write_tar(devkit, {meta: files[meta]})
    assert one_line(script(*command)[2], "does not hold ILSVRC2012_devkit_t12/data/ILSVRC2012_validation")
    devkit.unlink()
    assert one_line(script(*command)[2], "nothing says the classes of the images in", "img_val.tar; put")
    assert not (tmp_path / "out/val").exists()
    devkit.write_bytes(whole)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert one_line(script(*command)[2], "pip install 'video_iresnet[prep]'")


def test_damaged_archives_of_the_official_size(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a"
    write_archives(source)
    path = source / "ILSVRC2012_img_train.tar"
    monkeypatch.setitem(imagenet.OFFICIAL_BYTES, "train", path.stat().st_size)
    monkeypatch.setitem(
        torchvision.datasets.imagenet.ARCHIVE_META,
        "train",
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()),
    )
    assert "is the official file, by its MD5" in imagenet.check_archive(path, "train")
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    code, _, error = script("imagenet", "--source", source, "--out", tmp_path / "out")
    assert code == 1
    assert one_line(error, "has the size of the official file, but the MD5", "download it again")
    assert not (tmp_path / "out/train").exists()


def test_the_official_classes_have_torchvisions_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are known by a hash, whatever their words are."""
    synsets = [f"n{number:08d}" for number in range(1000)]
    digest = hashlib.sha256("".join(f"{synset}\n" for synset in synsets).encode()).hexdigest()
    assert not number_classes({}, synsets).is_official
    monkeypatch.setattr(imagenet, "SYNSETS_SHA256", digest)
    for words in ({}, dict.fromkeys(synsets, "a thing")):
        classes = number_classes(words, synsets[::-1] if not words else synsets[5:7])
        assert classes.is_official
        assert classes.synsets == synsets
        assert classes.names[:2] == ["tench", "goldfish"]
        assert len(set(classes.names)) == 1000
    assert Annotations({}, {}) == imagenet.read_annotations(Path("/nowhere"))


def released_iresnet50(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The authors' iResNet-50 on (B, 3, H, W), from the names of their tensors alone: their start, middle and
    end blocks, the pool in the shortcuts, and the ReLU in place that rectifies a stage's second identity.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{key}"] for key in keys), eps=1e-5)

    def branch(x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = F.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
        x = F.conv2d(x, state[f"{name}.conv2.weight"], stride=stride, padding=1)
        return F.conv2d(F.relu(norm(x, f"{name}.bn2")), state[f"{name}.conv3.weight"])

    x = F.relu(norm(F.conv2d(images, state["conv1.weight"], stride=2, padding=3), "bn1"))
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        start, second, *others = (f"layer{stage}.{block}" for block in range(blocks))
        shortcut = F.conv2d(F.max_pool2d(x, 3, 2, 1), state[f"{start}.downsample.1.weight"])
        x = norm(branch(x, start, 2), f"{start}.bn3") + norm(shortcut, f"{start}.downsample.2")
        x = F.relu(x)
        x = x + branch(x, second)
        for name in others:
            x = x + branch(F.relu(norm(x, f"{name}.bn0")), name)
        x = F.relu(norm(x, f"{others[-1]}.bn3"))
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def test_the_authors_networks_are_tested(tmp_path: Path, script: Script, run_net: RunNet) -> None:
    """A checkpoint as their training writes it, on a folder of ImageNet's layout, in a single centre crop."""
    torch.manual_seed(0)
    state = create_model("iresnet", 50, dims=2, width=8, num_classes=3).state_dict()
    for name, tensor in state.items():
        if name.endswith("running_mean") or (tensor.ndim == 1 and name.endswith("bias")):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
    state["fc.weight"] *= 0.02  # so that no probability is 0 or 1
    contents = {"epoch": 90, "arch": "iresnet50", "best_acc1": torch.tensor(77.3), "optimizer": {"state": {}}}
    state_dict = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(contents | {"state_dict": state_dict}, tmp_path / "iresnet50.pth")
    source, run = tmp_path / "source", tmp_path / "run"
    write_files(source / "train", train_images())
    write_files(source / "val", {f"{s}/{n}": d for (n, d), s in zip(val_images().items(), VAL, strict=True)})
    assert script("imagenet", "--source", source, "--out", source)[0] == 0
    overrides = f"""DATA.PATH_TO_DATA_DIR {source} MODEL.NUM_CLASSES 3 RESNET.WIDTH_PER_GROUP 8 NUM_GPUS 0
    DATA_LOADER.NUM_WORKERS 0 TRAIN.ENABLE False TEST.CHECKPOINT_FILE_PATH {tmp_path / "iresnet50.pth"}
    OUTPUT_DIR {run}"""
    assert run_net(*overrides.split(), cfg=CONFIG) == 0
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    folder = torchvision.datasets.ImageFolder(str(source / "val"), transform)
    (views,) = (run / "views").iterdir()
    exact, right = {name: tensor.double() for name, tensor in state.items()}, 0
    for video, (path, label), (image, _) in zip(ViewStore.open(views), folder.samples, folder, strict=True):
        assert (source / video.name).samefile(path)
        assert video.label == label
        probabilities = released_iresnet50(exact, image[None].double()).softmax(1)[0]
        assert 0.01 < probabilities.min() < probabilities.max() < 0.99
        assert torch.allclose(torch.from_numpy(pool(video.outputs[""])), probabilities, rtol=0, atol=1e-6)
        right += int(probabilities.argmax()) == label
    results = json.loads((run / "results.json").read_text())
    assert results["top1_acc"] == 100 * right / len(VAL)
    assert results["protocol"] == "1x1 @224 of short side 256, clips of 1x1"
