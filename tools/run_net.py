"""Train and test: python tools/run_net.py --cfg CONFIG.yaml [MORE.yaml ...] [--opts] [KEY VALUE ...].

Each config is a run of its own: training where TRAIN.ENABLE, then testing where TEST.ENABLE. Several
processes: `torchrun --nproc-per-node N tools/run_net.py ...`, or NUM_GPUS N, which does the same.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":  # imports take seconds
    from video_iresnet.runtime.errors import quiet_interrupts

    quiet_interrupts()
# Threads that wait should sleep: decoding shares the cores. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from video_iresnet.config import load_config
from video_iresnet.models import WeightsError
from video_iresnet.run import InterruptedRunError, run
from video_iresnet.runtime.distributed import close_processes
from video_iresnet.runtime.errors import InputError, print_error


def parse(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The configs and the overrides; overrides may follow the configs with or without --opts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", nargs="+", required=True, metavar="CONFIG.yaml")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    options = parser.parse_args(arguments)
    first = next(
        (i for i, word in enumerate(options.cfg) if i and not word.endswith((".yaml", ".yml"))),
        len(options.cfg),
    )
    return options.cfg[:first], options.cfg[first:] + options.opts


def main(arguments: list[str]) -> int:
    paths, overrides = parse(arguments)
    try:
        configs = [load_config(path, overrides) for path in paths]
        num_processes = configs[0].NUM_GPUS
        if num_processes > 1 and "RANK" not in os.environ:
            return launch(num_processes, arguments)
        for cfg in configs:
            run(cfg)
    except (InputError, WeightsError, OSError) as error:
        print_error(error)
        return 1
    except InterruptedRunError as interruption:
        if os.environ.get("RANK", "0") == "0":
            print(f"{interruption}\ngo on with: {_command(arguments)}", file=sys.stderr)
        return 128 + interruption.signal_number
    except KeyboardInterrupt:
        print("stopped at once; the last checkpoint is intact", file=sys.stderr)
        return 130
    close_processes()
    return 0


def launch(num_processes: int, arguments: list[str]) -> int:
    """This command again, in several processes of this machine."""
    try:
        torchrun(["--standalone", f"--nproc-per-node={num_processes}", __file__, *arguments])
    except ChildFailedError as error:  # the process has said why
        return abs(error.get_first_failure()[1].exitcode)
    except SignalException as error:  # the processes have saved and said how to go on
        return 128 + int(error.sigval)
    return 0


def _command(arguments: list[str]) -> str:
    """The command that was given."""
    world_size = os.environ.get("LOCAL_WORLD_SIZE")
    launcher = ["torchrun", "--nproc-per-node", world_size] if world_size else ["python"]
    return shlex.join([*launcher, sys.argv[0], *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
