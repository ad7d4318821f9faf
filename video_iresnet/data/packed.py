"""Records in a few arrays, whose memory worker processes share. They would copy a list of Python objects bit
by bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from .labels import Label
from .records import Record, file_sizes


class PackedRecords(Sequence[Record]):
    """A sequence of records, which are created on access."""

    def __init__(self, records: Iterable[Record]) -> None:
        texts = bytearray()
        ends, numbers, rates, classes = [0], [], [], list[int]()
        for record in records:
            for text in (record.name, record.path):
                texts += text.encode("utf-8", "surrogateescape")
                ends.append(len(texts))
            label = record.label
            if not isinstance(label, int):
                start = len(classes)
                classes += [len(label), *label]
                label = -1 - start
            numbers.append((label, record.first_frame, record.num_frames))
            rates.append(record.fps)
        self._texts = np.frombuffer(bytes(texts), np.uint8)
        self._ends = np.array(ends)
        self._numbers = np.array(numbers, np.int64).reshape(-1, 3)
        self._rates = np.array(rates, np.float64)
        # For videos of many labels: their number and themselves, from -1 - label on.
        self._classes = np.array(classes, np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def fingerprint(self) -> str:
        """Return the number of records and a hash of their names, labels and numbers of frames, in order. The
        folder common to all names is left out, so moved data keep their fingerprint.
        """
        texts, ends = self._texts.tobytes(), self._ends[:-1].tolist()
        names = [texts[first:end] for first, end in zip(ends[::2], ends[1::2], strict=True)]
        first, last = min(names, default=b""), max(names, default=b"")
        same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        shared = first.rfind(b"/", 0, same) + 1
        digest = hashlib.sha256(self._numbers[:, [0, 2]].astype("<i8").tobytes())
        digest.update(self._classes.astype("<i8").tobytes())
        for name in names:
            digest.update(name[shared:] + b"\n")
        return f"{len(self)} records with hash {digest.hexdigest()[:16]}"

    def identity(self) -> dict[str, str]:
        """Return what tells these videos from others: the fingerprint and a hash of the files' sizes."""
        sizes = json.dumps(file_sizes(self)).encode()
        return {"list": self.fingerprint(), "file_sizes": hashlib.sha256(sizes).hexdigest()}

    def _text(self, number: int) -> str:
        return (
            self._texts[self._ends[number] : self._ends[number + 1]]
            .tobytes()
            .decode("utf-8", "surrogateescape")
        )

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        label, first_frame, num_frames = map(int, self._numbers[index])
        name, path = self._text(2 * index), self._text(2 * index + 1)
        return Record(name, path, self._label(label), first_frame, num_frames, float(self._rates[index]))

    def _label(self, label: int) -> Label:
        if label >= 0:
            return label
        first = -label
        return tuple(self._classes[first : first + int(self._classes[first - 1])].tolist())
