"""Measure what random samples of a long video read: python tests/bytes_read.py --video FILE --samples 50.

A sample is 8 frames, 8 apart. The first opening fills the machine's index of packets. Prints MiB by what the
process read (rchar in /proc/self/io), so it needs Linux; it decodes some 250 frames a sample.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.data.decode.packet_index import PacketIndex
from video_iresnet.data.decode.pyav import PyAVReader

FRAMES, RATE = 8, 8


def bytes_read() -> int:
    found = re.search(r"^rchar: (\d+)", Path("/proc/self/io").read_text(), re.M)
    assert found
    return int(found[1])


def sample(path: str, index: PacketIndex, rng: random.Random) -> float:
    """Return the MiB that a sample reads, opening included."""
    begin = bytes_read()
    with PyAVReader(path, index) as reader:
        first = rng.randrange(len(reader) - (FRAMES - 1) * RATE)
        reader.read(range(first, first + FRAMES * RATE, RATE))
    return (bytes_read() - begin) / 2**20


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", required=True)
    parser.add_argument("--samples", type=int, default=50)
    options = parser.parse_args(arguments)
    index, rng = PacketIndex(), random.Random(0)
    begin = bytes_read()
    with PyAVReader(options.video, index):
        print(f"first opening: {(bytes_read() - begin) / 2**20:.1f} MiB")
    begin = bytes_read()
    with PyAVReader(options.video, index):
        print(f"opening: {(bytes_read() - begin) / 2**20:.1f} MiB")
    found = [sample(options.video, index, rng) for _ in tqdm(range(options.samples), leave=False)]
    low, median, high = np.percentile(found, [0, 50, 90])
    print(
        f"{len(found)} samples: min {low:.1f}, median {median:.1f}, mean {np.mean(found):.1f}, 90 % "
        f"{high:.1f}, max {max(found):.1f}; {sum(number > 20 for number in found)} above 20 MiB"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
