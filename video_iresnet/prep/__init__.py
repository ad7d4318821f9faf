"""The work of data_prep/: find, unpack, list, transcode and verify videos, on many cores or machines."""
