"""What is said of a video that someone sent: its classes, over time too, and where one of them is seen."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.decode.pyav import PyAVReader
from ..data.decode.reader import DecodeError
from ..data.sampling import Timeline
from .explanation import Explanation, explain, heated_pictures, seen_clip
from .movie import write_movie
from .predictor import Classifier, Prediction, frame_times, frame_windows
from .upload import Limits, open_upload

GUESSES = 5  # classes in the list and the plot
MOST_WINDOWS = 30

# Takes the progress in [0, 1] and what is done next; what it raises ends the work.
Tell = Callable[[float, str], None]


class Point(NamedTuple):
    """The probability of a class at a time of a video."""

    seconds: float
    probability: float
    name: str


@dataclass(frozen=True)
class Answer:
    """The classes of a whole video and of its windows. `seconds`: its duration. `explanation`: of its most
    probable class in the window where that is most probable; `movie`: the same as an MP4 file.
    """

    whole: Prediction
    windows: Sequence[Prediction]
    seconds: float
    explanation: Explanation
    movie: bytes

    def shown(self) -> list[str]:
        """Return the names of the lines, the most probable class first."""
        return list(dict.fromkeys(point.name for point in self.points()))

    def points(self) -> list[Point]:
        """Return lines of the classes that are most probable on average over the windows: a point in the
        middle of each window, and at both ends of the video, so that one window is a line too.
        """
        mean = np.mean([window.probabilities for window in self.windows], axis=0)
        average = Prediction(0.0, self.seconds, mean, self.whole.class_names)
        inner = [((window.begin + window.end) / 2, window) for window in self.windows]
        places = [(0.0, self.windows[0]), *inner, (self.seconds, self.windows[-1])]
        return [
            Point(seconds, float(window.probabilities[guess.label]), guess.name)
            for guess in average.top(GUESSES)
            for seconds, window in places
        ]


@dataclass(frozen=True)
class UploadClassifier:
    """Answers videos with one network. Uploads lie in `folder`."""

    classifier: Classifier
    limits: Limits
    folder: Path

    def answer(self, path: str, tell: Tell) -> Answer:
        """Classify an upload and remove it, whatever happens. Raises DecodeError with a sentence for the one
        who sent it.
        """
        try:
            tell(0.0, "reading the video")
            with open_upload(path, self.limits) as reader:
                try:
                    return self._answer(reader, tell)
                except DecodeError as error:
                    raise DecodeError(f"this video cannot be decoded: {error}") from error
        finally:
            self.remove(path)

    def _answer(self, reader: PyAVReader, tell: Tell) -> Answer:
        times = frame_times(reader)
        ranges = list(clip_windows(self.classifier, reader, times))
        whole = self.classifier.classify(reader, times, 0, len(reader), self.classifier.whole)
        windows = []
        for number, (first, end) in enumerate(ranges):
            tell((number + 1) / (len(ranges) + 2), f"classifying part {number + 1} of {len(ranges)}")
            windows.append(self.classifier.classify(reader, times, first, end, self.classifier.part))
        tell(1.0, "drawing where the class is seen")
        explanation, movie = self._explain(reader, whole.top(1)[0].label, windows)
        return Answer(whole, windows, times[-1], explanation, movie)

    def _explain(
        self, reader: PyAVReader, label: int, windows: Sequence[Prediction]
    ) -> tuple[Explanation, bytes]:
        """Explain a class in the window where it is most probable."""
        best = max(windows, key=lambda window: float(window.probabilities[label]))
        centre = Classifier(self.classifier.trained, clips=1, crops=1)
        explanation = explain(centre, seen_clip(centre, reader, best.begin, best.end), label)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(folder, "movie.mp4")
            write_movie(path, heated_pictures(centre, reader, explanation), rate=reader.fps)
            return explanation, path.read_bytes()

    def remove(self, path: str | Path) -> None:
        """Delete a file below the folder, and the folder that it alone was in."""
        path = Path(path)
        if self.folder in path.parents:
            path.unlink(missing_ok=True)
            if path.parent != self.folder:
                with contextlib.suppress(OSError):
                    path.parent.rmdir()


def clip_windows(
    classifier: Classifier, reader: PyAVReader, times: Sequence[float]
) -> Iterator[tuple[int, int]]:
    """Yield the frames [first, end) of windows as long as a clip, or longer in long videos, so that there are
    at most MOST_WINDOWS; each begins in the middle of the one before.
    """
    data = classifier.part
    (clip,) = data.sampler.uniform_clips(Timeline(len(reader), reader.fps), data.num_frames, 1)
    span = times[max(clip) + 1] - times[min(clip)]
    seconds = max(span, 2 * times[-1] / (MOST_WINDOWS + 1))
    return frame_windows(times, seconds, seconds / 2)
