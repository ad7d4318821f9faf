"""Measure how a run with many videos starts: python tests/many_records.py --out FOLDER --records 200000.

Makes a list of links to one tiny video, packs it into shards, and prints for both, and for 1 and 4 processes,
the CPU time and memory of each process to read the list, look at the files, and take what names a test. It
needs Linux, half a gigabyte and about 10 minutes for 200,000.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch.distributed as dist
from conftest import DEMO, ROOT, write_video

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.prep.shards import Layout, pack_lists
from video_iresnet.runtime.distributed import Processes

CLASSES = 400
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def make(folder: Path, count: int) -> None:
    video = write_video(folder / "video.mp4", 16, size=(32, 32), options={"crf": "45"})
    for label in range(CLASSES):
        (folder / f"class_{label:03d}").mkdir()
    names = [f"class_{number % CLASSES:03d}/video_{number:011d}.mp4" for number in range(count)]
    for name in names:
        os.symlink(video, folder / name)
    lines = [f"{name} {number % CLASSES}\n" for number, name in enumerate(names)]
    (folder / "train.csv").write_text("".join(lines))


def measure(folder: str) -> None:
    """Print what one process of a run needs."""
    keys = {
        "DATA.PATH_TO_DATA_DIR": folder,
        "DATA.CLASS_NAMES": "",
        "MODEL.NUM_CLASSES": CLASSES,
        "NUM_GPUS": 0,
    }
    cfg = load_config(DEMO, [str(word) for pair in keys.items() for word in pair])
    processes = Processes(use_gpu=False)
    begin = time.process_time()
    records = processes.from_main(lambda: build.build_records(cfg, "DATA.TRAIN_LIST"))
    processes.from_main(records.identity)
    seconds = time.process_time() - begin
    memory = re.search(r"^Pss:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text(), re.M)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{folder}: rank {processes.rank} of {processes.size}, {len(records)} records: {seconds:.1f} s of "
        f"CPU, {int(memory[1]) // 1024 if memory else 0} MiB, at most {peak // 1024} MiB",
        flush=True,
    )
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        measure(options.measure)
        return
    loose, packed = options.out / "loose", options.out / "packed"
    loose.mkdir(parents=True)
    make(loose, options.records)
    pack_lists([loose / "train.csv"], packed, Layout(), shard_bytes=10**8, workers=2)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for folder in (loose, packed):
        for launcher in ([], [*TORCHRUN, "4"]):
            words = [sys.executable, *launcher, __file__, "--out", str(options.out), "--measure", str(folder)]
            subprocess.run(words, env=environment, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
