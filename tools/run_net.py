"""Train and test: python tools/run_net.py --cfg CONFIG.yaml [MORE.yaml ...] [--opts] [KEY VALUE ...].

Each config is a separate run: training if TRAIN.ENABLE, then testing if TEST.ENABLE. For several processes
use `torchrun --nproc-per-node N tools/run_net.py ...`, or NUM_GPUS N, which does the same; srun, mpirun and
Kubernetes' PyTorchJob start them as well.

With --check, look at config, lists, files, network and speed instead, and print how long the run would take.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

# Waiting threads should sleep: decoding uses the same cores. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from video_iresnet.check import check
from video_iresnet.config import load_with_notes
from video_iresnet.models import WeightsError
from video_iresnet.run import run
from video_iresnet.runtime.distributed import group_of_run
from video_iresnet.runtime.launchers import launcher_words, torch_variables
from video_iresnet.runtime.root import script_words
from video_iresnet.runtime.signals import StopRequest, follow_launcher


def parse(arguments: list[str]) -> tuple[list[str], list[str], bool]:
    """Return the configs, the overrides, which may follow with or without --opts, and --check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--cfg", nargs="+", required=True, metavar="CONFIG.yaml")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    options = parser.parse_args(arguments)
    first = next(
        (i for i, word in enumerate(options.cfg) if i and not word.endswith((".yaml", ".yml"))),
        len(options.cfg),
    )
    return options.cfg[:first], options.cfg[first:] + options.opts, options.check


def main(arguments: list[str]) -> int:
    paths, overrides, only_check = parse(arguments)
    if only_check:
        return exit_code(lambda: check_configs(paths, overrides), WeightsError)
    command = os.environ.get("RUN_NET_COMMAND") or _command(arguments)  # set: NUM_GPUS started this process
    return exit_code(lambda: run_configs(paths, overrides, command), WeightsError, command=command)


def check_configs(paths: list[str], overrides: list[str]) -> None:
    """Print what the runs of the configs would be."""
    for path in paths:
        cfg, notes = load_with_notes(path, overrides)
        for line in itertools.chain(notes, check(cfg)):
            print(line, flush=True)


def run_configs(paths: list[str], overrides: list[str], command: str) -> int:
    """Run the configs in turn; return 0, or the exit status of the first failure in separate processes."""
    os.environ |= torch_variables(os.environ)
    configs = [load_with_notes(path, overrides) for path in paths]
    stop = StopRequest()
    follow_launcher(stop)
    for path, (cfg, notes) in zip(paths, configs, strict=True):
        if cfg.NUM_GPUS > 1 and "RANK" not in os.environ:
            os.environ["RUN_NET_COMMAND"] = command
            code = launch(cfg.NUM_GPUS, ["--cfg", path, "--opts", *overrides])
            if code:
                return code
        else:
            with group_of_run():
                run(cfg, stop, notes)
    return 0


def launch(num_processes: int, arguments: list[str]) -> int:
    """Run one config in several processes of this machine; returns the exit status."""
    # Seconds for which torchrun's agent lets its processes save after a signal.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, _pass_on)
    try:
        torchrun(["--standalone", f"--nproc-per-node={num_processes}", __file__, *arguments])
    except ChildFailedError as error:  # the process has printed why, unless it was killed
        code = int(error.get_first_failure()[1].exitcode)
        if code < 0:
            print(f"error: a process of this run was killed ({signal.Signals(-code).name})", file=sys.stderr)
        return code if code >= 0 else 128 - code
    except SignalException as error:  # the processes have saved and printed how to resume
        return 128 + int(error.sigval)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def _pass_on(number: int, frame: object) -> None:
    """Do what torchrun's agent does on SIGTERM: send the signal to all processes and wait for them."""
    raise SignalException(f"signal {number}", signal.Signals(number))


def _command(arguments: list[str]) -> str:
    """Return the command of this run."""
    return shlex.join([*launcher_words(os.environ), *script_words(sys.argv[0]), *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
