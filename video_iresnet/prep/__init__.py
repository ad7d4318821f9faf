"""Data preparation: find, unpack, list, transcode and verify videos."""
