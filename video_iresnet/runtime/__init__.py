"""Processes, devices, files and logs; knows nothing of video."""

from . import stores  # noqa: F401  # lets the path manager open addresses, in every process
