"""Processes, devices, files and logs; knows nothing of video."""
