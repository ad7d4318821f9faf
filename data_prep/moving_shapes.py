"""Write a small set of real H.264 videos whose classes can only be told by motion.

    python data_prep/moving_shapes.py --out data/moving_shapes

Eight classes in time-reversed pairs: a shape moves left or right, up or down, turns clockwise or
counterclockwise, grows or shrinks. The world is a torus and growth starts over when it reaches the largest
size, so at every moment the shape's position, angle and size are uniform for every class: no single frame
reveals it. Each scene (shape, colours, background, speed, start, length, size and frame rate) is shown in all
eight motions, so that only the motion differs.

With --shapes 2, a video shows two smaller shapes in two different motions, each scene in all 28 pairs of
these, and lists have both labels (`path 3,7`), for DATA.MULTI_LABEL:

    python data_prep/moving_shapes.py --shapes 2 --out data/moving_shapes_2

Writes videos/, train.csv, val.csv, test.csv and classes.txt. The lists come last. After an
interruption, run it again.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from video_iresnet.prep.jobs import run_jobs
from video_iresnet.runtime.cores import usable_cores
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.storage import atomic_write, exclusive, remove_leftovers

# Change per cycle of (x, y, angle, size), each a fraction of its full range; neighbours are each other's time
# reverse.
MOTIONS = {
    "moving left": (-1, 0, 0, 0),
    "moving right": (1, 0, 0, 0),
    "moving up": (0, -1, 0, 0),
    "moving down": (0, 1, 0, 0),
    "turning clockwise": (0, 0, 1, 0),
    "turning counterclockwise": (0, 0, -1, 0),
    "growing": (0, 0, 0, 1),
    "shrinking": (0, 0, 0, -1),
}
FRAME_RATES = (Fraction(12), Fraction(15), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30))
RADIUS = (0.2, 0.42)  # of the short side, of a single shape
SCALE_OF_TWO = 0.75  # of shapes that share a video
Motion = tuple[int, int, int, int]


class Scene(NamedTuple):
    """The appearance of a video with one shape, without its motion."""

    height: int
    width: int
    frame_rate: Fraction
    num_frames: int
    cycles_per_frame: float
    start: NDArray[np.float64]
    corners: int
    bulge: float
    colours: NDArray[np.float64]  # of the star and of its sector
    background: NDArray[np.float64]
    scale: float = 1.0  # of the shape's size


def draw_scene(rng: np.random.Generator) -> Scene:
    """Return a scene that does not depend on the class."""
    short = 2 * int(rng.integers(32, 49))
    long = 2 * round(short * rng.uniform(1, 1.3) / 2)
    height, width = (short, long) if rng.random() < 0.5 else (long, short)
    return Scene(
        height=height,
        width=width,
        frame_rate=FRAME_RATES[rng.integers(len(FRAME_RATES))],
        num_frames=int(rng.integers(24, 49)),
        cycles_per_frame=rng.uniform(1 / 30, 1 / 20),
        start=rng.uniform(0, 1, 4),
        corners=int(rng.integers(3, 7)),
        bulge=rng.uniform(-0.1, 0.35),
        colours=np.stack([rng.uniform(160, 255, 3), rng.uniform(0, 110, 3)]),
        background=rng.uniform(20, 80, 3) + smooth_noise(rng, height, width),
    )


def smooth_noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return a smooth random texture (height, width, 3) in [-20, 20]."""
    coarse = rng.uniform(-20, 20, (4, 4, 3))
    rows, columns = np.linspace(0, 2.999, height), np.linspace(0, 2.999, width)
    y, x = rows.astype(int), columns.astype(int)
    v, u = (rows - y)[:, None, None], (columns - x)[None, :, None]
    top = coarse[y][:, x] * (1 - u) + coarse[y][:, x + 1] * u
    bottom = coarse[y + 1][:, x] * (1 - u) + coarse[y + 1][:, x + 1] * u
    return np.asarray(top * (1 - v) + bottom * v)


def outline(scene: Scene, motion: Motion, frame: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return how much of each pixel the shape covers, and the pixel's direction from the shape's centre
    against the shape's own angle, (height, width) each.
    """
    x, y, turn, growth = (scene.start + np.array(motion) * scene.cycles_per_frame * frame) % 1
    radius = scene.scale * min(scene.height, scene.width) * RADIUS[0] * (RADIUS[1] / RADIUS[0]) ** growth
    dy = (np.arange(scene.height) - y * scene.height + scene.height / 2) % scene.height - scene.height / 2
    dx = (np.arange(scene.width) - x * scene.width + scene.width / 2) % scene.width - scene.width / 2
    dy, dx = dy[:, None].astype(np.float32), dx[None, :].astype(np.float32)
    distance = np.hypot(dy, dx)
    angle = np.arctan2(dy, dx) - np.float32(2 * math.pi * turn)
    edge = radius * (1 + scene.bulge * np.cos(scene.corners * angle)) / (1 + abs(scene.bulge))
    return np.clip(edge - distance + 0.5, 0, 1), angle


def render(shapes: Sequence[tuple[Scene, Motion]], frame: int) -> NDArray[np.uint8]:
    """Draw a frame (height, width, 3) on the background of the first scene: bright rounded stars with a dark
    sector, which shows their angle.
    """
    picture = shapes[0][0].background
    for scene, motion in shapes:
        picture = drawn_over(picture, scene, motion, frame)
    return np.rint(picture).astype(np.uint8)


def drawn_over(picture: NDArray[np.float64], scene: Scene, motion: Motion, frame: int) -> NDArray[np.float64]:
    """Draw the shape of a scene over a picture (height, width, 3)."""
    cover, angle = outline(scene, motion, frame)
    sector = (np.cos(angle) > 0.3)[..., None]
    shape = np.where(sector, *scene.colours[::-1].astype(np.float32))
    return np.asarray(picture * (1 - cover[..., None]) + shape * cover[..., None])


def write_video(path: Path, shapes: Sequence[tuple[Scene, Motion]]) -> None:
    """Encode scenes in motion as H.264 in MP4."""
    scene, _ = shapes[0]
    with atomic_write(path, "wb") as file, av.open(file, "w", format="mp4") as container:
        # Macroblock trees are off because with them x264 writes other bits at each run for pictures this
        # small.
        stream = container.add_stream(
            "libx264", rate=scene.frame_rate, options={"crf": "20", "preset": "veryfast", "mbtree": "0"}
        )
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        stream.codec_context.thread_count = (
            1  # the output depends on the number of threads, here and in the conversion
        )
        reformatter = VideoReformatter()
        for frame in range(scene.num_frames):
            picture = av.VideoFrame.from_ndarray(render(shapes, frame), format="rgb24")
            container.mux(stream.encode(reformatter.reformat(picture, format="yuv420p", threads=1)))
        container.mux(stream.encode())


class Job(NamedTuple):
    """Video `number` of a split: with one shape, scene `number // 8` in motion `number % 8`."""

    folder: Path
    split: str
    number: int
    seed: int
    num_shapes: int = 1

    @property
    def name(self) -> str:
        return f"{self.split}_{self.number:04d}.mp4"

    @property
    def labels(self) -> tuple[int, ...]:
        """The motions of the shapes."""
        all_labels = list(itertools.combinations(range(len(MOTIONS)), self.num_shapes))
        return all_labels[self.number % len(all_labels)]


def drawn(job: Job) -> list[tuple[Scene, Motion]]:
    """Return the scene and the motion of each shape of a video."""
    rng = np.random.default_rng([
        job.seed, job.number // math.comb(len(MOTIONS), job.num_shapes), *job.split.encode()
    ])  # fmt: skip
    scenes = [draw_scene(rng) for _ in job.labels]
    if job.num_shapes > 1:
        first, second = scenes
        # Shapes begin apart, or one that stays where it is could hide another one.
        start = np.concatenate([(first.start[:2] + rng.uniform(0.35, 0.65, 2)) % 1, second.start[2:]])
        scenes = [
            first._replace(
                start=at, cycles_per_frame=scene.cycles_per_frame, corners=scene.corners,
                bulge=scene.bulge, colours=scene.colours, scale=SCALE_OF_TWO,
            )
            for scene, at in ((first, first.start), (second, start))
        ]  # fmt: skip
    return [(scene, list(MOTIONS.values())[label]) for scene, label in zip(scenes, job.labels, strict=True)]


def write_one(job: Job) -> None:
    """Write a video, unless it exists."""
    path = job.folder / "videos" / job.name
    if not path.exists():
        write_video(path, drawn(job))


def write_data_set(
    folder: Path, sizes: dict[str, int], seed: int, workers: int = 0, num_shapes: int = 1
) -> None:
    """Write all videos, then the lists. `sizes`: videos per split; `workers`: see run_jobs."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(folder, split, number, seed, num_shapes)
        for split, size in sizes.items()
        for number in range(size)
    ]
    with exclusive(folder):
        try:
            with closing(run_jobs(write_one, jobs, workers=workers, description="moving shapes")) as work:
                deque(work, maxlen=0)
        finally:
            remove_leftovers(folder / "videos", {job.name for job in jobs})
        for split in sizes:
            with atomic_write(folder / f"{split}.csv") as file:
                file.writelines(
                    f"videos/{job.name} {','.join(map(str, job.labels))}\n"
                    for job in jobs
                    if job.split == split
                )
        with atomic_write(folder / "classes.txt") as file:
            file.writelines(f"{name}\n" for name in MOTIONS)


def prepare(options: argparse.Namespace) -> None:
    """Write the data set, unless it exists."""
    sizes = {"train": options.train, "val": options.val, "test": options.test}
    for name, value in {**sizes, "seed": options.seed}.items():
        if value < 0:
            raise InputError(f"--{name} is {value}; expected 0 or more")
    if (options.out / "classes.txt").exists():
        print(f"{options.out} is complete; nothing was written")
        return
    write_data_set(options.out, sizes, options.seed, usable_cores(), options.shapes)
    print(f"wrote {options.train} + {options.val} + {options.test} videos and their lists to {options.out}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--train", type=int, default=512, help="training videos")
    parser.add_argument("--val", type=int, default=64, help="validation videos")
    parser.add_argument("--test", type=int, default=96, help="test videos")
    parser.add_argument("--shapes", type=int, choices=[1, 2], default=1, help="in each video (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    return exit_code(lambda: prepare(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
