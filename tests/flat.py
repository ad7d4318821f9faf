"""Watch memory, open files and threads of a long run: python tests/flat.py --out FOLDER.

Trains the demo's network for 50 epochs of 48 steps, with a checkpoint after each and a validation after every
fourth, and looks at all of its processes twice a second. Prints a table by epoch; the exit status is 0 where
memory grows by less than 2 % of itself in 1,000 steps and descriptors and threads do not grow, all from epoch
6 on.
Reads /proc, so it needs Linux; about 12 minutes with two free cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conftest import DEMO, load_script
from drill import Start
from tabulate import tabulate

BATCH = 8
WARM = 5  # epochs in which allocators and caches fill
LARGEST_GROWTH = 0.02  # of the memory, in 1,000 steps


class Look(NamedTuple):
    """What the processes of a run have at one moment; memory in MiB, where a shared page counts once."""

    main: float
    others: float
    descriptors: int
    threads: int


def look(start: Start) -> Look:
    main = others = 0.0
    descriptors = threads = 0
    for pid in start.processes():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            folder = Path(f"/proc/{pid}")
            memory = re.search(r"^Pss:\s+(\d+) kB", (folder / "smaps_rollup").read_text(), re.M)
            mebibytes = int(memory[1]) / 1024 if memory else 0.0
            main, others = (main + mebibytes, others) if pid == start.root.pid else (main, others + mebibytes)
            descriptors += len(os.listdir(folder / "fd"))
            threads += len(os.listdir(folder / "task"))
    return Look(main, others, descriptors, threads)


def epochs_done(run: Path) -> int:
    log = run / "json_stats.log"
    return log.read_text().count('"_type": "train_epoch"') if log.exists() else 0


def watch(start: Start, run: Path) -> dict[int, list[Look]]:
    """Return what was seen in each epoch, counted from 1."""
    seen = defaultdict(list)
    while start.root.poll() is None:
        seen[epochs_done(run) + 1].append(look(start))
        time.sleep(0.5)
    return dict(seen)


def growth(epochs: dict[int, Look], steps: int) -> dict[str, float]:
    """Return how much the least of each number grows in 1,000 steps, from the first to the last third of the
    epochs. The least, because validations and what is being sent come and go.
    """
    seen, third = list(epochs.values()), len(epochs) // 3
    thousands = (len(seen) - third) * steps / 1000
    return {
        name: (
            min(getattr(look, name) for look in seen[-third:])
            - min(getattr(look, name) for look in seen[:third])
        )
        / thousands
        for name in Look._fields
    }


def growing(epochs: dict[int, Look], steps: int) -> list[str]:
    """Return what grows."""
    grown, last = growth(epochs, steps), epochs[max(epochs)]
    heavy = [name for name in ("main", "others") if grown[name] > LARGEST_GROWTH * getattr(last, name)]
    # Validations come every fourth epoch, so four epochs are compared with four.
    first, final = list(epochs.values())[:4], list(epochs.values())[-4:]
    more = [
        name
        for name in ("descriptors", "threads")
        if max(getattr(seen, name) for seen in final) > max(getattr(seen, name) for seen in first)
    ]
    return heavy + more


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--videos", type=int, default=384)
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    shapes = args.out / "shapes"
    load_script("data_prep/moving_shapes.py").write_data_set(
        shapes, {"train": args.videos, "val": 16, "test": 16}, seed=0
    )
    run = args.out / "run"
    command = ["tools/run_net.py", "--cfg", DEMO, "NUM_GPUS", "0", "DATA.PATH_TO_DATA_DIR", str(shapes)]
    keys = {
        "OUTPUT_DIR": run,
        "TRAIN.BATCH_SIZE": BATCH,
        "SOLVER.MAX_EPOCH": args.epochs,
        "TEST.ENABLE": False,
    }
    overrides = [str(word) for pair in keys.items() for word in pair]
    start = Start([sys.executable, *command, *overrides], args.out / "output.txt")
    try:
        looks = watch(start, run)
    finally:
        start.kill()
    if start.root.returncode:
        print(f"error: the run failed; see {start.output}", file=sys.stderr)
        return 1
    # The median, as each epoch starts and ends with other work; the most of files and threads.
    epochs = {
        epoch: Look(
            statistics.median(seen.main for seen in some),
            statistics.median(seen.others for seen in some),
            max(seen.descriptors for seen in some),
            max(seen.threads for seen in some),
        )
        for epoch, some in looks.items()
        if WARM < epoch <= args.epochs
    }
    steps = args.videos // BATCH
    shown = [epoch for epoch in epochs if epoch % 5 == 0 or epoch == WARM + 1]
    rows = [(epoch, epoch * steps, *epochs[epoch]) for epoch in shown]
    print(
        tabulate(
            rows, ["epoch", "steps", "MiB, main", "MiB, workers", "descriptors", "threads"], floatfmt=".1f"
        )
    )
    grown = growth(epochs, steps)
    print("in 1,000 steps: " + ", ".join(f"{name} {number:+.2f}" for name, number in grown.items()))
    grows = growing(epochs, steps)
    print(f"GROWS: {', '.join(grows)}" if grows else "nothing grows")
    return int(bool(grows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
