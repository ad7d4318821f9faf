"""Pictures are videos of one frame: reading, crops, networks of images, and a whole run."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, RunNet, load_script, write_video
from PIL import Image
from torchvision.transforms import v2

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.data.decode import DecodeError, open_video
from video_iresnet.data.functional import cut, half_even, resize, short_side_size, spread_crops
from video_iresnet.data.records import Record
from video_iresnet.data.transforms import PaddedCrop
from video_iresnet.engine.aggregate import pool
from video_iresnet.engine.views import ViewStore
from video_iresnet.inference.gradcam import grad_cam
from video_iresnet.inference.trained import read_trained
from video_iresnet.models import create_model
from video_iresnet.runtime.errors import InputError

CIFAR = str(ROOT / "configs/cifar/iresnet20.yaml")
IMAGENET = str(ROOT / "configs/imagenet/iresnet50_strong.yaml")


def drawn(rng: np.random.Generator, height: int = 61, width: int = 83) -> Image.Image:
    """A smooth picture of random colours."""
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


MODES = {".jpg": "RGB L CMYK", ".JPEG": "RGB", ".png": "RGB L P RGBA LA I;16", ".webp": "RGB RGBA"}


@pytest.mark.parametrize(
    ("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes.split()]
)
def test_pictures_are_read_as_by_pillow(tmp_path: Path, suffix: str, mode: str) -> None:
    picture, path = drawn(np.random.default_rng(0)), tmp_path / f"a b{suffix}"
    (picture.convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)).save(path)
    with open_video(Record("a", str(path), 0)) as reader, Image.open(path) as image:
        assert len(reader) == 1
        assert reader.fps == 0
        frames = reader.read([0, 0])
        assert np.array_equal(frames[0].numpy(), np.asarray(image.convert("RGB")))
    assert torch.equal(frames[0], frames[1])
    assert frames.dtype == torch.uint8


def test_a_picture_under_another_name_is_read(tmp_path: Path) -> None:
    """ImageNet has a PNG file that is called JPEG."""
    drawn(np.random.default_rng(0)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.JPEG")
    with open_video(Record("a", str(tmp_path / "a.JPEG"), 0)) as reader:
        assert reader.read([0]).shape == (1, 61, 83, 3)


def test_bad_pictures_are_bad_videos(tmp_path: Path) -> None:
    drawn(np.random.default_rng(0), 400, 400).save(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "none.png").write_bytes(b"")
    drawn(np.random.default_rng(0)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "gif.png")
    write_video(tmp_path / "a.mp4", 3).rename(tmp_path / "video.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, why in {
        "cut.jpg": "truncated",
        "none.png": "cannot identify",
        "gif.png": "cannot identify",
        "video.jpg": "cannot identify",
        "pipe.jpg": "it is a named pipe",
        "absent.webp": "No such file",
    }.items():
        with pytest.raises(DecodeError, match=why):
            open_video(Record(name, str(tmp_path / name), 0))


@pytest.mark.parametrize("size", [(301, 417), (417, 300), (256, 256), (80, 91)])
def test_ten_crops_are_torchvisions(size: tuple[int, int]) -> None:
    picture = drawn(np.random.default_rng(0), *size)
    theirs = v2.functional.ten_crop(
        v2.functional.resize(v2.functional.pil_to_tensor(picture), 256), [224, 224]
    )
    ours = resize(torch.from_numpy(np.array(picture))[None], *short_side_size(*size, 256))
    places = spread_crops(*ours.shape[1:3], 224, 10, half_even)
    crops = [cut(ours, place, 224)[0].permute(2, 0, 1) for place in places]
    order = [0, 1, 2, 3, 5, 6, 7, 8, 9, 4]  # theirs have the centre behind the corners
    for number, expected in zip(order, theirs, strict=True):
        assert torch.equal(crops[number], expected)
    assert spread_crops(*ours.shape[1:3], 224, 1, half_even) == [places[5]]


def test_padded_crops_hold_the_picture() -> None:
    picture = torch.full((2, 32, 32, 3), 200, dtype=torch.uint8)
    seen = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        square = PaddedCrop(4)(picture, 32, rng)
        assert square.shape == (2, 32, 32, 3)
        rows, columns = (square[0, :, :, 0] > 0).any(1).sum(), (square[0, :, :, 0] > 0).any(0).sum()
        assert (square > 0).sum() == 2 * rows * columns * 3
        assert min(rows, columns) >= 28
        seen.add((int(rows), int(columns)))
    assert (32, 32) in seen
    assert len(seen) > 15
    assert PaddedCrop(4)(torch.zeros(1, 64, 80, 3, dtype=torch.uint8), 32, rng).shape == (1, 32, 32, 3)


def test_an_image_network_takes_clips_of_one_frame() -> None:
    torch.manual_seed(0)
    net = create_model("iresnet", 18, dims=2, num_classes=5, width=4).eval()
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(net(images), net(images[:, :, None]))
        for flat, clip in zip(net.features(images), net.features(images[:, :, None]), strict=True):
            assert torch.equal(flat, clip[:, :, 0])
        maps = net.features_of("stage2", images[:, :, None])
        assert maps.shape == (2, 8, 1, 8, 6)
        assert torch.equal(net.logits_from("stage2", maps), net(images))
        assert torch.equal(net.logits_from("stage2", maps[:, :, 0]), net(images))
        with pytest.raises(ValueError, match="clips of 2 frames; expected one"):
            net(torch.zeros(1, 3, 2, 64, 48))
    heat = grad_cam(net, images[:, :, None], torch.tensor([0, 1]))
    assert heat.shape == (2, 1, 64, 48)
    assert heat.amax() == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("DATA.NUM_FRAMES 2", "DATA.NUM_FRAMES is 2, but MODEL.DIMS is 2; set it to 1"),
        ("TEST.NUM_ENSEMBLE_VIEWS 3", "TEST.NUM_ENSEMBLE_VIEWS is 3, but MODEL.DIMS is 2"),
        ("TEST.TEMPORAL_CHECKS True", "TEST.TEMPORAL_CHECKS is True, but MODEL.DIMS is 2"),
        ("RESNET.TEMPORAL_KERNELS slow", "but MODEL.DIMS is 2; leave it out, or set MODEL.DIMS to 3"),
        ("RESNET.STEM_TEMPORAL_KERNEL 3", "but MODEL.DIMS is 2; leave it out, or set MODEL.DIMS to 3"),
        ("MODEL.DIMS 1", "expected one of 2, 3"),
    ],
)
def test_keys_of_time_are_refused(change: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        load_config(IMAGENET, change.split())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and blue pictures, as PNG and JPEG, with some noise."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    (folder / "classes.txt").write_text("red\nblue\n")
    for split, count in (("train", 24), ("test", 10)):
        rows = []
        for number in range(count):
            label = number % 2
            pixels = rng.integers(0, 120, (40, 36, 3), dtype=np.uint8)
            pixels[:, :, 2 * label] += 130
            name = f"{split}_{number}.{('png', 'jpg')[number // 2 % 2]}"
            Image.fromarray(pixels).save(folder / name)
            rows.append(f"{name} {label}\n")
        (folder / f"{split}.csv").write_text("".join(rows))
    return folder


@pytest.fixture(scope="module")
def trained_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory, run_net: RunNet) -> Path:
    """A run of images, tested by ten crops."""
    run = tmp_path_factory.mktemp("runs") / "run"
    overrides = f"""DATA.PATH_TO_DATA_DIR {pictures} MODEL.NUM_CLASSES 2 RESNET.WIDTH_PER_GROUP 4 NUM_GPUS 0
    DATA_LOADER.NUM_WORKERS 0 TRAIN.BATCH_SIZE 8 SOLVER.MAX_EPOCH 4 SOLVER.STEPS [0,3] SOLVER.LRS [1,0.1]
    OUTPUT_DIR {run} TEST.NUM_SPATIAL_CROPS 10 TEST.BATCH_SIZE 30 DATA.TEST_SHORT_SIDE 36
    DATA.TRAIN_PADDING 2"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("video_iresnet.engine.verdict.BOUND", 0.0)  # so that the log says what would help
        assert run_net(*overrides.split(), cfg=CIFAR) == 0
    return run


@pytest.mark.slow
def test_a_run_of_images_learns_and_is_tested_by_ten_crops(pictures: Path, trained_run: Path) -> None:
    """The probabilities are the means of an independent computation."""
    run = trained_run
    assert ", or smaller pictures; see tools/benchmark.py data" in (run / "stdout.log").read_text()
    results = json.loads((run / "results.json").read_text())
    assert results["top1_acc"] == 100
    assert results["protocol"] == "1x10 @32 of short side 36, clips of 1x1"
    trained = read_trained(run, torch.device("cpu"))
    assert build.build_training_data(trained.cfg, []).crop == PaddedCrop(2)
    data = trained.cfg.DATA
    (folder,) = (run / "views").iterdir()
    videos = list(ViewStore.open(folder))
    assert len(videos) == 10
    for video in videos:
        with Image.open(pictures / video.name) as image:
            picture = v2.functional.pil_to_tensor(image.convert("RGB"))
        crops = torch.stack(v2.functional.ten_crop(v2.functional.resize(picture, 36), [32, 32]))
        inputs = v2.functional.normalize(v2.functional.to_dtype(crops, scale=True), data.MEAN, data.STD)
        with torch.no_grad():
            expected = trained.network(inputs).softmax(1).double().mean(0)
        assert torch.allclose(torch.from_numpy(pool(video.outputs[""])), expected, rtol=0, atol=1e-6)


def test_pictures_are_classified(
    pictures: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the test did, with its ten crops; in a folder all that can be read are found."""
    run, name = str(trained_run), str(pictures / "test_2.jpg")
    with open(trained_run / "predictions.csv") as file:
        expected = {row["video"]: row for row in csv.DictReader(file)}
    predict = load_script("tools/predict.py")
    assert predict.main(["--checkpoint", run, name, str(pictures), "--csv", str(tmp_path / "p.csv")]) == 0
    assert re.match(rf"{name}\n +\d+\.\d\d%  red\n", capsys.readouterr().out)
    with open(tmp_path / "p.csv") as file:
        found = {row["video"]: row for row in csv.DictReader(file)}
    assert len(found) == 34
    for video, row in expected.items():
        guess = found[str(pictures / video)]
        assert guess["top1"] == ("red", "blue")[int(row["top1"])]
        assert float(guess["prob1"]) == pytest.approx(float(row["prob1"]), abs=2e-6)
    assert predict.main(["--checkpoint", run, name, "--annotate", str(tmp_path / "a.mp4")]) == 1
    assert "test_2.jpg is a picture; name a video" in capsys.readouterr().err
    explain = load_script("tools/explain.py")
    assert explain.main(["--checkpoint", run, name, "--sanity", "--out", str(tmp_path / "heat")]) == 0
    assert re.match(r"red: \d+\.\d\d%; heat at", capsys.readouterr().out)
    assert (tmp_path / "heat.png").exists()
    extract = load_script("tools/extract.py")
    assert extract.main(["--checkpoint", run, "--out", str(tmp_path / "f"), str(pictures)]) == 0
    assert list((tmp_path / "f").glob("features_per_*"))


def test_image_networks_are_measured(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = load_script("tools/benchmark.py")
    monkeypatch.setattr(benchmark, "supports", lambda *_: False)
    cfg = ["--cfg", CIFAR, "DATA.PATH_TO_DATA_DIR", str(pictures), "RESNET.WIDTH_PER_GROUP", "4"]
    cfg += ["MODEL.NUM_CLASSES", "2", "NUM_GPUS", "0"]
    assert benchmark.main(["model", "--clips", "2", "--repeats", "1", *cfg]) == 0
    output = capsys.readouterr().out
    for way in ("float32, channels_last", "torchvision's resnet18, ordinary loop", "float32, folded"):
        assert f"| {way} " in output
    assert benchmark.main(["data", *cfg]) == 1
    assert "train_0.png is a picture, and ways to decode videos are compared" in capsys.readouterr().err


def test_the_networks_of_the_configs_have_the_counts_of_the_authors() -> None:
    with torch.device("meta"):
        counts = {
            depth: sum(
                p.numel()
                for p in build.build_model(
                    load_config(str(ROOT / f"configs/imagenet/iresnet{depth}.yaml"))
                ).parameters()
            )
            for depth in (50, 101)
        }
    assert counts == {50: 25_557_032, 101: 44_549_160}
