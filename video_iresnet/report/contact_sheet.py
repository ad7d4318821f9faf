"""Contact sheets: clips as rows of frames, with titles."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.loader import ClipBatch

MARGIN, LINE = 4, 14
NARROWEST = 480  # pixels, for the titles


class Row:
    """A clip (T, S, S, 3) uint8 with a title and, if known, the numbers or times of its frames. Longer clips
    than `max_frames` are thinned out.
    """

    def __init__(
        self, clip: Tensor, title: str, indices: Sequence[int | str] = (), max_frames: int = 16
    ) -> None:
        step = -(-len(clip) // max_frames)
        self.clip, self.title, self.indices = clip[::step], title, list(indices)[::step]


def sheet(rows: Sequence[Row]) -> Image.Image:
    """Draw all rows below each other, with titles and frame numbers."""
    size = rows[0].clip.shape[1]
    width = MARGIN + max(len(row.clip) for row in rows) * (size + MARGIN)
    height = MARGIN + len(rows) * (size + LINE + 2 * MARGIN)
    picture = Image.new("RGB", (max(width, NARROWEST), height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    top = MARGIN
    for row in rows:
        draw.text((MARGIN, top), row.title, "black", font)
        top += LINE
        for i, frame in enumerate(row.clip.numpy()):
            left = MARGIN + i * (size + MARGIN)
            picture.paste(Image.fromarray(np.ascontiguousarray(frame)), (left, top))
            if row.indices:
                number = str(row.indices[i])
                box = draw.textbbox((left + 2, top + 1), number, font)
                draw.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), "black")
                draw.text((left + 2, top + 1), number, "white", font)
        top += size + 2 * MARGIN
    return picture


def batch_sheet(
    batch: ClipBatch, class_names: Sequence[str], max_clips: int = 8, max_frames: int = 8
) -> Image.Image:
    """Draw the first clips of a batch with labels and, where known, class names."""
    rows = []
    for clip, label in zip(batch.clips[:max_clips], batch.labels[:max_clips].tolist(), strict=True):
        numbers = [label] if isinstance(label, int) else [number for number in label if number >= 0]
        names = [f"{number}: {class_names[number]}" if class_names else str(number) for number in numbers]
        title = ", ".join(names) or "no class"
        rows.append(Row(clip.permute(1, 2, 3, 0), title, max_frames=max_frames))
    return sheet(rows)


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file, compressed fast."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=3)
    return file.getvalue()


def noting_first(batches: Iterator[ClipBatch], note: Callable[[ClipBatch], None]) -> Iterator[ClipBatch]:
    """Yield the batches, and call `note` with the first one when it is taken, if it has clips."""
    for number, batch in enumerate(batches):
        if number == 0 and batch.clips.numel():
            note(batch)
        yield batch
