"""Draw predictions into the pictures of a video."""

from __future__ import annotations

import functools
import itertools
from bisect import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.decode.reader import Reader
from ..runtime.errors import printable
from .movie import Picture
from .predictor import Guess, Prediction

# Fractions of the shorter side of a picture.
TEXT, SPACE = 1 / 18, 1 / 40
SMALLEST = 10  # pixels of the text
OPACITY = 0.65  # of the panel
PANEL, BAR, WORDS = (16, 18, 24), (52, 101, 164), (255, 255, 255)


@functools.cache
def lettering(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib brings, for Latin, Greek, Cyrillic and more, in pixels."""
    import matplotlib  # here, as most predictions draw nothing

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def panel(guesses: Sequence[Guess], height: int, width: int) -> Picture:
    """Return a panel (h, w, 3) for a picture of this size: a line for each class with its probability, in
    front of a bar as long as that.
    """
    size = max(SMALLEST, round(TEXT * min(height, width)))
    space = max(2, round(SPACE * min(height, width)))
    font = lettering(size)
    lines = [f"{guess.probability:4.0%}  {printable(guess.name)}" for guess in guesses]
    room = width - 4 * space
    lines = [_shortened(line, font, room) for line in lines]
    step = size + space
    across = min(room, round(max(font.getlength(line) for line in lines)))
    picture = Image.new("RGB", (across + 2 * space, len(lines) * step + space), PANEL)
    draw = ImageDraw.Draw(picture)
    for row, (line, guess) in enumerate(zip(lines, guesses, strict=True)):
        top = space // 2 + row * step
        length = round(guess.probability * (picture.width - 1))
        draw.rectangle((0, top, length, top + step - 2), BAR)
        draw.text((space, top + step // 2 - 1), line, WORDS, font, anchor="lm")
    return np.asarray(picture)


def draw_panel(picture: Picture, drawn: Picture) -> Picture:
    """Return a copy of an (H, W, 3) picture with a panel in its upper left corner."""
    margin = max(2, round(SPACE * min(picture.shape[:2])))
    result = picture.copy()
    place = result[margin : margin + drawn.shape[0], margin : margin + drawn.shape[1]]
    fitting = drawn[: place.shape[0], : place.shape[1]]
    place[:] = (OPACITY * fitting + (1 - OPACITY) * place).round()
    return result


def annotated(
    reader: Reader, times: Sequence[float], predictions: Sequence[Prediction], top: int
) -> Iterator[tuple[float, Picture]]:
    """Yield (seconds, picture) of each frame of a video with the `top` classes of the prediction whose middle
    is nearest, one at a time. `times`: see frame_times.
    """
    middles = [(prediction.begin + prediction.end) / 2 for prediction in predictions]
    borders = [(before + after) / 2 for before, after in itertools.pairwise(middles)]
    shown, drawn = -1, np.zeros((0, 0, 3), np.uint8)
    for index in range(len(reader)):
        picture = reader.read([index])[0].numpy()
        nearest = bisect(borders, times[index])
        if nearest != shown:
            shown, drawn = nearest, panel(predictions[nearest].top(top), *picture.shape[:2])
        yield times[index], draw_panel(picture, drawn)


def _shortened(line: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """Return a line, or its beginning, of at most `room` pixels."""
    while line and font.getlength(line) > room:
        line = f"{line.rstrip('…')[:-1]}…"
    return line
