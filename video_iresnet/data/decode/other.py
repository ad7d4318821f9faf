"""Base of the readers of other libraries: PyAV numbers the frames and is the reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import Tensor

from ...runtime.ranges import Input, open_range
from .h264 import may_be_interlaced
from .packet_index import PacketIndex
from .picture import orientation, peculiarity
from .pyav import PyAVReader

Read = Callable[[list[int]], Tensor]

log = logging.getLogger("video_iresnet")
noted: set[str] = set()


class UnfitError(Exception):
    """A valid file that a library does not read exactly."""


class OtherReader(PyAVReader):
    """Reads with another library if it sees the same frames as PyAV. If not, or if it fails, PyAV reads
    instead.

    So frames and errors do not depend on the library. The first such file is logged.
    """

    name: str

    def __init__(self, path: str, index: PacketIndex | None = None) -> None:
        super().__init__(path, index)
        self._read_other: Read | None = None
        self._file: Input | None = None
        self.left_because = ""  # why PyAV reads instead
        try:
            if self.is_counted:
                raise UnfitError("its packets carry no times")
            first = self._frame(0)
            unlike = peculiarity(first)
            if unlike:
                raise UnfitError(unlike)
            is_transposed, flip_rows, flip_columns = orientation(first)
            if is_transposed ^ flip_rows ^ flip_columns:
                raise UnfitError("it is to be mirrored")
            if self._video.codec == "h264":
                self._check_h264()
            # A truncated recording ends within a frame, whose picture depends on the frames decoded before.
            if self._video.format in ("mpegts", "mpeg") and self._frame(len(self) - 1).is_corrupt:
                raise UnfitError("its last frame is damaged")
            num_frames, self._read_other = self._connect()
            if num_frames != len(self):
                raise UnfitError(f"{self.name} sees {num_frames} frames, not {len(self)}")
        except Exception as error:  # whatever another library may raise
            self._leave_to_pyav(error)

    def __exit__(self, *exception: object) -> None:
        self._read_other = None
        if self._file is not None:
            self._file.close()
        super().__exit__(*exception)

    def read(self, indices: Sequence[int]) -> Tensor:
        """See Reader."""
        if self._read_other:
            try:
                frames = self._read_other(list(indices))
                if self._file is not None:
                    self._file.check()
                return frames
            except Exception as error:
                self._leave_to_pyav(error)
        return super().read(indices)

    def _check_h264(self) -> None:
        if may_be_interlaced(self.stream.codec_context.extradata):
            raise UnfitError("it may have interlaced frames")
        if not self._is_closed:
            raise UnfitError("frames behind a keyframe may need earlier ones")

    def _connect(self) -> tuple[int, Read]:
        """Return the number of frames that the library sees, and how it reads them. Raises UnfitError."""
        raise NotImplementedError

    def _source(self) -> str | Input:
        """Return what the library is to open: a path on this machine, or a file to read from."""
        if not self._video.is_ranged:
            return self._video.path
        self._file = Input(open_range(self._video.path))
        return self._file

    def _leave_to_pyav(self, error: Exception) -> None:
        self._read_other = None
        self.left_because = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if self.name not in noted:
            noted.add(self.name)
            log.warning(
                "%s does not read %s exactly (%s); pyav reads it, and others like it",
                self.name,
                self.path,
                self.left_because,
            )
