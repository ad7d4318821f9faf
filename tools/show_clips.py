"""A contact sheet of what the network receives: python tools/show_clips.py --cfg CONFIG.yaml --out clips.png
[--samples 8] [KEY VALUE ...].

One row a sample of the first epoch, after decoding, cropping, flipping and augmentation (`--test`: the first
views of test videos): its frames as uint8, with label, class name and the numbers of the source frames.
`--mixed`: after mixing, with the largest fractions of the target.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

import torch
from torch import Tensor

from video_iresnet import build
from video_iresnet.config import Config, load_config
from video_iresnet.data.dataset import SampleKey
from video_iresnet.data.decode import OpenVideo, Reader
from video_iresnet.data.decode.reader import DecodeError
from video_iresnet.data.functional import cut
from video_iresnet.data.labels import label_names, label_tensor
from video_iresnet.data.records import Record
from video_iresnet.data.sampling import Timeline
from video_iresnet.report.contact_sheet import Row, png, sheet
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.seeding import Stream, generator
from video_iresnet.runtime.storage import atomic_write


class Noted:
    """Opens videos with `open_video` and notes which frames are read."""

    def __init__(self, open_video: OpenVideo) -> None:
        self.open_video = open_video
        self.indices: list[int] = []

    def __call__(self, record: Record) -> Reader:
        reader = self.open_video(record)
        read = reader.read

        def noting(indices: Sequence[int]) -> Tensor:
            self.indices = list(indices)
            return read(indices)

        reader.read = noting  # type: ignore[method-assign]
        return reader


def training_rows(cfg: Config, count: int, mixed: bool) -> list[Row]:
    records = build.build_records(cfg, "DATA.TRAIN_LIST")
    data = build.build_training_data(cfg, records)
    data.open_video = noted = Noted(data.open_video)
    names = class_names(cfg)
    keys = next(iter(build.build_batches(cfg, len(records))))
    clips, labels, titles, indices = [], [], [], []
    for key in keys if mixed else keys[:count]:  # a clip may be mixed with any other of the batch
        sample = data[SampleKey(*key)]
        for clip, label in zip(sample.clips, sample.labels, strict=True):
            clips.append(clip)
            labels.append(label)
            indices.append(noted.indices)
            name = records[key.record].name
            titles.append(f"in the place of {name}: {sample.failures[0].reason}" if sample.failures else name)
    if not clips:
        raise InputError(
            f"none of the videos tried of {cfg.DATA.TRAIN_LIST} can be read, the first because "
            f"{sample.failures[0].reason}"
        )
    if mixed:
        rng = generator(cfg.RNG_SEED, Stream.MIXING, 0, 0)
        blended, targets = build.build_targets(cfg)(torch.stack(clips).float(), label_tensor(labels), rng)
        clips = list(blended.round().to(torch.uint8))
        texts = [fractions(target, names) for target in targets]
    else:
        texts = [label_names(label, names) for label in labels]
    rows = zip(clips, indices, texts, titles, strict=True)
    return [
        Row(clip.permute(1, 2, 3, 0), f"{text}  -  {title}", numbers) for clip, numbers, text, title in rows
    ][:count]


def fractions(target: Tensor, names: Sequence[str]) -> str:
    """Return the two largest fractions of a target, or its label."""
    if target.ndim == 0:
        return f"{int(target)} {names[int(target)]}"
    values, labels = target.topk(min(2, len(target)))
    return " + ".join(
        f"{value:.2f} x {label} {names[label]}"
        for value, label in zip(values.tolist(), labels.tolist(), strict=True)
    )


def test_rows(cfg: Config, count: int) -> list[Row]:
    records = build.build_records(cfg, "DATA.TEST_LIST")
    data = build.build_test_data(cfg, records)
    names, rows = class_names(cfg), []
    for number, record in enumerate(records):
        views = data[number]
        if views.error:
            raise InputError(f"cannot read {record.path}: {views.error}")
        with data.open_video(record) as reader:
            wanted = data.sampler.uniform_clips(
                Timeline(len(reader), reader.fps), data.num_frames, data.num_clips
            )
        for c, (clip, indices) in enumerate(zip(views.clips, wanted, strict=True), start=1):
            for s, place in enumerate(views.crops, start=1):
                picture = cut(views.frames[clip], place, data.crop_size)
                title = f"{label_names(record.label, names)}  -  clip {c}, crop {s}  -  {record.name}"
                rows.append(Row(picture, title, indices))
                if len(rows) == count:
                    return rows
    return rows


def class_names(cfg: Config) -> list[str]:
    classes = build.build_class_names(cfg)
    return list(classes.names) if classes else [""] * cfg.MODEL.NUM_CLASSES


def show(options: argparse.Namespace) -> None:
    """Write the sheet."""
    cfg = load_config(options.cfg, options.overrides)
    if options.test:
        rows = test_rows(cfg, options.samples)
    else:
        rows = training_rows(cfg, options.samples, options.mixed)
    with atomic_write(options.out, "wb") as file:
        file.write(png(sheet(rows)))
    print(f"{options.out}: {len(rows)} clips as the network receives them")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", required=True, metavar="CONFIG.yaml")
    parser.add_argument("--out", default="clips.png")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--test", action="store_true", help="the views of test videos")
    parser.add_argument("--mixed", action="store_true", help="after mixup and cutmix")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    options = parser.parse_args(arguments)
    return exit_code(lambda: show(options), DecodeError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
