"""Random transforms: one draw for all frames, each from the sample's own numbers; what they draw, and what a
mirror does to classes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from video_iresnet.data.directions import directions
from video_iresnet.data.functional import flip
from video_iresnet.data.mixing import Mixer, plain_targets, smooth_targets
from video_iresnet.data.transforms import (
    Compose,
    Crop,
    OnAllFrames,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    ShortSideJitter,
)

CROPS: list[Crop] = [
    ShortSideJitter(32, 36, 44),
    ShortSideJitter(32, 36, 44, inverse=True),
    RandomResizedCrop((0.2, 1.0), (0.75, 4 / 3)),
]
AUGMENT = Compose(
    [OnAllFrames(v2.ColorJitter(0.4, 0.4, 0.4)), OnAllFrames(v2.RandAugment(2, 7)), RandomErasing(0.5)]
)


def noise(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))


@pytest.mark.parametrize("crop", CROPS)
def test_identical_frames_stay_identical_and_draws_differ(crop: Crop) -> None:
    clip = noise(1, 48, 70, 3).expand(4, -1, -1, -1)

    def transformed(seed: int) -> Tensor:
        rng = np.random.default_rng(seed)
        clip_of_seed, _ = RandomFlip({})(crop(clip, 32, rng), 0, rng)
        return AUGMENT(clip_of_seed, rng)

    outputs = [transformed(seed) for seed in range(12)]
    for output in outputs:
        assert output.shape == (4, 32, 32, 3)
        assert output.dtype == torch.uint8
        assert all(torch.equal(output[0], output[t]) for t in range(1, 4))
    assert len({bytes(output.contiguous().numpy()) for output in outputs}) == 12
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(transformed(3), outputs[3])
    assert torch.equal(torch.get_rng_state(), state)


def test_random_crops_reach_every_edge() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 1, 64, 1).expand(1, 48, 64, 3)
    lefts = [
        ShortSideJitter(48, 48, 48)(ramp, 48, np.random.default_rng(seed))[0, 0, 0, 0].item()
        for seed in range(400)
    ]
    assert (min(lefts), max(lefts)) == (0, 16)
    assert torch.equal(flip(ramp)[0, 0, :, 0], torch.arange(63, -1, -1, dtype=torch.uint8))
    flipped = sum(
        RandomFlip({})(ramp, 0, np.random.default_rng(seed))[0][0, 0, 0, 0].item() == 63
        for seed in range(400)
    )
    assert 150 < flipped < 250


def short_sides(jitter: ShortSideJitter, size: int) -> list[int]:
    rng = np.random.default_rng(0)
    return [jitter._short_side(size, rng) for _ in range(4000)]


def test_short_sides_are_drawn_uniformly_or_inversely() -> None:
    plain = short_sides(ShortSideJitter(224, 256, 512), 224)
    inverse = short_sides(ShortSideJitter(224, 256, 512, inverse=True), 224)
    assert (min(plain), max(plain)) == (256, 512)
    assert np.mean(plain) == pytest.approx(384, abs=4)
    assert (min(inverse), max(inverse)) == (256, 512)
    assert np.mean(inverse) == pytest.approx(512 * np.log(2), abs=4), "the mean of 1 / U(1 / 512, 1 / 256)"


@pytest.mark.parametrize(
    ("size", "smallest", "largest"), [(112, 128, 320), (158, 181, 320), (224, 256, 320), (448, 512, 640)]
)
def test_smaller_crops_scale_the_smallest_side_alone(size: int, smallest: int, largest: int) -> None:
    """As in PySlowFast, with sides of at least 256 for crops of 224: 256 * 158 / 224 is 180.57."""
    for inverse in (False, True):
        sides = short_sides(ShortSideJitter(224, 256, 320, inverse=inverse), size)
        assert (min(sides), max(sides)) == (smallest, largest)


def test_smaller_crops_show_a_part_of_the_picture() -> None:
    """A crop of 32 pixels out of a short side of 40 to 96 (80 for crops of 64) takes 32 / 96 to 32 / 40 of
    the height of 120 pixels; the gradient of a ramp tells how much.
    """
    ramp = torch.arange(240, dtype=torch.uint8).view(1, 1, 240, 1).expand(1, 120, 240, 3)
    parts = []
    for seed in range(300):
        row = ShortSideJitter(64, 80, 96)(ramp, 32, np.random.default_rng(seed)).float()[0, 0, :, 0]
        parts.append(float(row[-1] - row[0]) * 32 / 31)
    assert min(parts) == pytest.approx(120 * 32 / 96, abs=2)
    assert max(parts) == pytest.approx(120 * 32 / 40, abs=2)


def test_resized_crops_keep_to_their_bounds() -> None:
    """The gradients of a ramp tell how much of each axis was taken."""
    height, width = 120, 160
    clip = torch.stack(
        [torch.arange(height).view(-1, 1).expand(-1, width), torch.arange(width).expand(height, -1)], -1
    ).to(torch.uint8)
    sides = []
    for seed in range(300):
        part = RandomResizedCrop((0.1, 0.5), (0.75, 4 / 3))(clip[None], 16, np.random.default_rng(seed))[
            0
        ].float()
        sides.append([(part[-1, 0, 0] - part[0, 0, 0]) * 16 / 15, (part[0, -1, 1] - part[0, 0, 1]) * 16 / 15])
    h, w = torch.tensor(sides).T
    area, aspect = h * w / (height * width), w / h
    assert area.min() < 0.14
    assert 0.43 < area.max() < 0.56
    assert 0.7 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.42
    wide = RandomResizedCrop((1.0, 1.0), (1.0, 1.0))(clip[None], 16, np.random.default_rng(0))[0].float()
    assert wide[0, 0, 1] > 15, "no square has the whole area, so the centred one is taken"


def test_erasing_fills_one_box_in_all_frames() -> None:
    clip = torch.full((3, 40, 40, 3), 7, dtype=torch.uint8)
    fractions = []
    for seed in range(200):
        erased = RandomErasing(0.5)(clip, np.random.default_rng(seed))
        changed = (erased != 7).any(-1)
        assert torch.equal(changed[0], changed[2])
        if changed.any():
            rows, columns = changed[0].any(1).sum(), changed[0].any(0).sum()
            fractions.append(float(rows * columns) / 1600)
    assert 70 < len(fractions) < 130
    assert min(fractions) > 0.01
    assert max(fractions) < 0.36
    assert (clip == 7).all()


def test_directions_of_classes() -> None:
    names = [
        "Pulling something from left to right",
        "Pulling something from right to left",
        "Turning left-handed",
        "Leaving",
        "Bright light",
        "turn_left",
        "Turn_right",
    ]
    assert directions(names) == ({0: 1, 1: 0, 5: 6, 6: 5}, frozenset({2}))
    assert directions(["MoveLeft", "MoveRight", "MoveUp"]) == ({0: 1, 1: 0}, frozenset())
    assert directions(["leftwards", "rightwards", "moving right"]) == ({0: 1, 1: 0}, frozenset({2}))


def test_flips_know_their_classes() -> None:
    clip = torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1)
    random_flip = RandomFlip({0: 1, 1: 0}, frozenset({2}))
    for label in range(4):
        results = [random_flip(clip, label, np.random.default_rng(seed)) for seed in range(60)]
        flipped = [(mirrored, new) for mirrored, new in results if mirrored[0, 0, 0, 0] == 3]
        assert {new for _, new in flipped} == (
            {1} if label == 0 else {0} if label == 1 else set() if label == 2 else {3}
        )
        assert {new for mirrored, new in results if mirrored[0, 0, 0, 0] == 0} == {label}


def test_smoothed_targets() -> None:
    targets = smooth_targets(torch.tensor([2, 0]), 4, 0.2)
    assert targets.tolist() == [
        pytest.approx([0.05, 0.05, 0.85, 0.05]),
        pytest.approx([0.85, 0.05, 0.05, 0.05]),
    ]
    clips, labels = torch.zeros(2), torch.tensor([1, 0])
    assert plain_targets(clips, labels, np.random.default_rng(0)) == (clips, labels)


def mixed(seed: int, **options: float) -> tuple[Tensor, Tensor]:
    """Two clips, one of zeros of class 0 and one of ones of class 1, mixed."""
    settings = {
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "probability": 1.0,
        "switch_probability": 0.5,
        "smoothing": 0.0,
    } | options
    clips = torch.stack([torch.zeros(3, 4, 20, 20), torch.ones(3, 4, 20, 20)])
    return Mixer(2, **settings)(clips, torch.tensor([0, 1]), np.random.default_rng(seed))


def test_mixup_blends_clips_and_labels_alike() -> None:
    for seed in range(20):
        clips, targets = mixed(seed, cutmix_alpha=0.0)
        assert clips[0].unique().numel() == 1
        assert clips[0].mean().item() == pytest.approx(targets[0, 1].item(), abs=1e-6)
        assert targets.sum(1).tolist() == pytest.approx([1.0, 1.0])
        assert targets[1, 0] == targets[0, 1]


def test_cutmix_pastes_a_box_and_weighs_labels_by_area() -> None:
    for seed in range(20):
        clips, targets = mixed(seed, mixup_alpha=0.0)
        assert set(clips.unique().tolist()) <= {0.0, 1.0}
        assert clips[0].mean().item() == pytest.approx(targets[0, 1].item(), abs=1e-6)
        assert torch.equal(clips[0, 0, 0], clips[0, 2, 3])
        box = clips[0, 0, 0]
        assert box.sum() == box.any(1).sum() * box.any(0).sum()


def test_fractions_of_mixed_batches() -> None:
    batches = [mixed(seed, probability=0.6, switch_probability=0.25) for seed in range(400)]
    untouched = sum(bool(targets[0, 0] == 1 and (clips[0] == 0).all()) for clips, targets in batches)
    cut = sum(
        bool(set(clips.unique().tolist()) == {0.0, 1.0} and targets[0, 0] != 1) for clips, targets in batches
    )
    assert 120 < untouched < 210
    assert 35 < cut < 85
    _, targets = mixed(0, probability=0.0, smoothing=0.1)
    assert targets.tolist() == [pytest.approx([0.95, 0.05]), pytest.approx([0.05, 0.95])]
