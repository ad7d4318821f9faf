"""Explanations of videos: clip, movie, strip, random weights, and heat that lies on what moves."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
import torch
from conftest import RunNet, load_script, shown_numbers, write_video
from localize import mask_of, measure
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.data.functional import Place
from video_iresnet.inference import Classifier, load
from video_iresnet.inference.explanation import (
    SMALLEST,
    Explanation,
    Seen,
    explain,
    heat_of_random_weights,
    heated_pictures,
    rank_correlation,
    seen_clip,
    strip,
)
from video_iresnet.inference.gradcam import grad_cam
from video_iresnet.inference.predictor import Guess
from video_iresnet.models import ResNet, create_model
from video_iresnet.report.heat import enlarged, heat_colours, heated, with_scale
from video_iresnet.runtime.errors import InputError


@pytest.fixture(scope="module")
def run(small: list[str], tmp_path_factory: pytest.TempPathFactory, run_net: RunNet) -> Path:
    folder = tmp_path_factory.mktemp("explain") / "run"
    assert run_net(*small, "OUTPUT_DIR", str(folder), "TEST.ENABLE", "False") == 0
    return folder


@pytest.fixture(scope="module")
def classifier(run: Path) -> Classifier:
    return load(run, "cpu", clips=1, crops=1)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of 25 frames per second, upright, so that the crop has all columns."""
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", 50, size=(96, 64))


def tool(*arguments: object) -> int:
    return int(load_script("tools/explain.py").main([str(word) for word in arguments]))


def test_the_clip_is_that_of_the_centre_or_of_the_named_part(classifier: Classifier, video: Path) -> None:
    """Clips of 4 frames, 2 apart."""
    with PyAVReader(str(video)) as reader:
        whole = seen_clip(classifier, reader)
        part = seen_clip(classifier, reader, 1.0, 1.4)  # frames 25 to 34
        short = seen_clip(classifier, reader, 1.9)  # frames 48 and 49
        (positions,), ((top, left, _),) = (
            (views := classifier.part.views_of(reader, 0, 0, 50)).clips,
            views.crops,
        )
        with pytest.raises(InputError, match=r"no frames from 3 s to the end; it lasts 2.00 s"):
            seen_clip(classifier, reader, 3.0)
        with pytest.raises(InputError, match=r"no frames from 1 s to 1 s"):
            seen_clip(classifier, reader, 1.0, 1.0)
    assert torch.equal(whole.frames, views.frames[positions, top : top + 32, left : left + 32])
    assert whole.numbers == shown_numbers(whole.frames) == [21, 23, 25, 27]
    assert part.numbers == [26, 28, 30, 32]
    assert short.numbers == [48, 49, 49, 49]
    assert whole.times == pytest.approx([0.84, 0.92, 1.0, 1.08])
    expected = (whole.frames.permute(3, 0, 1, 2)[None] / 255 - 0.45) / 0.225
    torch.testing.assert_close(whole.inputs, expected)


def test_the_class_is_the_best_or_the_named_one(classifier: Classifier, video: Path) -> None:
    with PyAVReader(str(video)) as reader:
        seen = seen_clip(classifier, reader)
        predicted = classifier.classify(reader, [0.0] * 51, 0, 50, classifier.part)
    best, named = explain(classifier, seen), explain(classifier, seen, 3, "stage2")
    assert best.guess.label == predicted.top(1)[0].label
    assert best.guess.probability == pytest.approx(predicted.top(1)[0].probability, abs=1e-5)
    assert named.guess[:2] == (3, "moving down")
    assert named.guess.probability == pytest.approx(float(predicted.probabilities[3]), abs=1e-5)
    network = classifier.trained.network
    assert torch.equal(named.heat, grad_cam(network, seen.inputs, torch.tensor([3]), "stage2")[0])
    assert best.stage == "stage1"
    with pytest.raises(InputError, match=r"unknown stage 'layer3'; expected one of stem, stage1"):
        explain(classifier, seen, stage="layer3")


def explanation_of(heat: Tensor, numbers: list[int]) -> Explanation:
    frames = torch.zeros(len(numbers), 32, 32, 3, dtype=torch.uint8)
    seen = Seen(frames, numbers, [number / 25 for number in numbers], torch.empty(0), Place(8, 0))
    return Explanation(seen, Guess(1, "moving right", 0.75), "stage3", heat)


def test_the_movie_has_all_frames_with_heat_between_those_of_the_clip(
    classifier: Classifier, video: Path
) -> None:
    """Also where the last frame repeats."""
    heat = torch.zeros(4, 32, 32)
    heat[1], heat[3] = 1.0, 0.5
    with PyAVReader(str(video)) as reader:
        made = list(heated_pictures(classifier, reader, explanation_of(heat, [10, 12, 16, 16])))
        frames = reader.read(range(10, 17))
    assert [time for time, _ in made] == pytest.approx([i / 25 for i in range(7)])
    side = 9 * 32
    assert side >= SMALLEST
    assert {picture.shape for _, picture in made} == {(side, 2 * side, 3)}
    left = torch.stack([torch.from_numpy(picture[:, :side]) for _, picture in made])
    assert shown_numbers(left[:, 144:]) == shown_numbers(frames)
    expected = [0, 0.5, 1, 0.75, 0.5, 0.25, 0]
    for value, (_, picture), frame in zip(expected, made, left, strict=True):
        small = frame[::9, ::9]
        over = heated(small, torch.full((32, 32), value))
        assert abs(picture[::9, side::9][16:].astype(int) - over[16:].numpy()).max() <= 1  # below the class


def test_heat_colours_what_is_hot() -> None:
    frame = torch.tensor([[[200, 100, 0], [10, 20, 30]]], dtype=torch.uint8)
    none, half, most = (heated(frame, torch.full((1, 2), value)) for value in (0.0, 0.5, 1.0))
    grey = frame.float() @ torch.tensor([0.299, 0.587, 0.114])
    assert none[..., 0].tolist() == none[..., 1].tolist() == none[..., 2].tolist() == grey.round().tolist()
    top = torch.from_numpy(heat_colours(np.ones(1)))[0]
    expected = 0.75 * top + 0.25 * grey[..., None]
    assert (most - expected).abs().max() <= 0.5
    assert (half.int() - none.int()).abs().max() < (most.int() - none.int()).abs().max()
    brightness = heat_colours(np.linspace(0, 1, 20)).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) > 0).all()


def test_small_frames_are_enlarged_by_whole_numbers() -> None:
    frame = torch.arange(12, dtype=torch.uint8).view(2, 2, 3)
    large = enlarged(frame, 5)
    assert large.shape == (6, 6, 3)
    assert torch.equal(large[::3, ::3], frame)
    assert torch.equal(large[2::3, 2::3], frame)
    assert torch.equal(enlarged(frame, 2), frame)


def test_the_strip_shows_frames_heat_and_random_heat() -> None:
    heat = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0))
    explanation = explanation_of(heat, [10, 12, 14, 16])
    two, three = strip(explanation), strip(explanation, 1 - heat)
    row = 96 + 14 + 8
    assert (two.size, three.height - two.height) == ((480, 4 + 2 * row + 18), row)
    pixels = np.asarray(three)
    over = enlarged(heated(explanation.seen.frames, heat), 96).numpy()
    for column in range(4):
        left, top = 4 + column * 100, 4 + 14 + row
        shown = pixels[top : top + 96, left : left + 96]
        assert np.array_equal(shown[20:], over[column][20:])  # below the time
    scale = np.asarray(with_scale(Image.new("RGB", (300, 20)), ""))[25, 4:164]
    assert np.array_equal(scale, heat_colours(np.linspace(0, 1, 160)))


def test_rank_correlation_is_spearmans() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 9, (3, 8, 8), generator=generator).float().clamp(min=4)  # many equal ones
    b = (a + 3 * torch.rand(3, 8, 8, generator=generator)).round()
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert math.isnan(rank_correlation(a, torch.zeros_like(a)))


# A network of its own that learns, within seconds, which of two colours a square has that moves over noise.
SQUARE, SIZE, FRAMES = 12, 32, 4


def squares(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(N,) colours -> (N, 3, T, S, S) clips, and where the square is (N, T, S, S)."""
    clips = 0.3 * torch.randn(len(labels), 3, FRAMES, SIZE, SIZE, generator=generator)
    masks = torch.zeros(len(labels), FRAMES, SIZE, SIZE, dtype=torch.bool)
    for number, label in enumerate(labels.tolist()):
        top, left = torch.randint(SIZE - SQUARE - FRAMES, (2,), generator=generator).tolist()
        for t in range(FRAMES):
            masks[number, t, top : top + SQUARE, left + t : left + t + SQUARE] = True
        clips[number, label][masks[number]] = 1.5
    return clips, masks


@pytest.fixture(scope="module")
def trained() -> ResNet:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network, generator = create_model("iresnet", 18, width=8, num_classes=2), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for _ in range(40):
        labels = torch.randint(0, 2, (16,), generator=generator)
        clips, _ = squares(labels, generator)
        optimizer.zero_grad()
        F.cross_entropy(network(clips), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval()


def test_learned_heat_lies_on_the_moving_square(trained: ResNet) -> None:
    labels = torch.arange(32) % 2
    clips, masks = squares(labels, torch.Generator().manual_seed(1))
    assert (trained(clips).argmax(1) == labels).float().mean() > 0.9
    found = [
        measure(heat, mask, 0) for heat, mask in zip(grad_cam(trained, clips, labels), masks, strict=True)
    ]
    peak, near, mass, area = np.mean(found, axis=0)
    assert peak == near
    assert peak > 0.5
    assert mass > 2 * area


def test_random_weights_give_another_picture(trained: ResNet) -> None:
    clips, _ = squares(torch.arange(8) % 2, torch.Generator().manual_seed(2))
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    correlations = []
    for number, clip in enumerate(clips):
        seen = Seen(torch.empty(0), [], [], clip[None], (0, 0))
        guess = Guess(number % 2, "", 1.0)
        heat = grad_cam(trained, clip[None], torch.tensor([guess.label]))[0]
        explanation = Explanation(seen, guess, "stage1", heat)
        state = torch.get_rng_state()
        other = heat_of_random_weights(trained, explanation, seed=number)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(other, heat_of_random_weights(trained, explanation, seed=number))
        assert other.isfinite().all()
        correlations.append(rank_correlation(heat, other))
        assert rank_correlation(heat, grad_cam(trained, clip[None], torch.tensor([guess.label]))[0]) == 1
    assert np.mean(correlations) < 0.5
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_deep_random_weights_do_not_overflow() -> None:
    network = create_model("resnet", 200, width=4, num_classes=2).eval()
    seen = Seen(torch.empty(0), [], [], torch.randn(1, 3, 4, 32, 32), (0, 0))
    heat = torch.zeros(4, 32, 32)
    other = heat_of_random_weights(network, Explanation(seen, Guess(0, "", 1.0), "stage4", heat))
    assert other.isfinite().all()


def test_where_the_shape_is(classifier: Classifier, shapes: Path, moving_shapes: ModuleType) -> None:
    """The pixels that the mask names differ from the background, and others do not."""
    number = 2
    ((scene, motion),) = moving_shapes.drawn(moving_shapes.Job(Path(), "test", number, 0))
    frame = moving_shapes.render([(scene, motion)], 5).astype(float)
    cover, _ = moving_shapes.outline(scene, motion, 5)
    changed = abs(frame - scene.background).max(2)
    assert (changed[cover == 0] <= 0.5).all()
    assert (changed[cover == 1] > 20).mean() > 0.9
    with PyAVReader(str(shapes / f"videos/test_{number:04d}.mp4")) as reader:
        seen = seen_clip(classifier, reader)
    mask = mask_of(classifier, seen, number)
    contrast = seen.frames.float().std(-1)  # between channels: the shape's colours are vivid
    brightness = seen.frames.float().mean(-1)
    assert mask.shape == (4, 32, 32)
    assert 0.05 < mask.float().mean() < 0.6
    assert (brightness[mask].mean() - brightness[~mask].mean()).abs() + contrast[mask].mean() > 20


def test_the_tool_writes_movie_and_strip(
    run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heat"
    command = ["--checkpoint", run, video, "--class", "growing", "--stage", "stage2", "--end", 1, "--sanity"]
    assert tool(*command, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"growing: \d+\.\d\d% from 0\.36 s to 0\.60 s; heat at stage2 in {out}\.mp4 and {out}\.png", lines[0]
    )
    assert re.fullmatch(r"rank correlation .* weights: -?(\d\.\d\d|nan) \(1: the same picture\)", lines[1])
    with av.open(f"{out}.mp4") as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([i / 25 for i in range(7)], abs=1e-3)
    with Image.open(f"{out}.png") as picture:
        assert picture.height > 3 * 96
    assert tool(*command, "--out", out) == 1
    assert capsys.readouterr().err == f"error: {out}.mp4 exists; name another --out\n"


def test_mistakes_are_one_line(
    run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for arguments, text in [
        (
            ["--class", "flying", video],
            "--class flying: no such class; expected a number below 8, or one of moving",
        ),
        (["--class", "8", video], "--class 8: no such class"),
        (["--stage", "fc", video], "unknown stage 'fc'; expected one of stem"),
        (["--begin", "5", video], "the video has no frames from 5 s to the end"),
        ([broken], "broken.mp4 cannot be read: "),
    ]:
        assert tool("--checkpoint", run, *arguments, "--out", tmp_path / "heat") == 1
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.mp4"]
    assert tool("--checkpoint", run, video, "--class", "7", "--out", tmp_path / "heat") == 0
    assert capsys.readouterr().out.startswith("shrinking: ")
