"""Submit a script to SLURM, as a job that goes on by itself after its time limit and after a preemption:

    python tools/slurm.py --nodes 2 --gpus-per-node 8 --hours 24 --set partition=gpu \\
        run_net --cfg configs/kinetics/iR3D50.yaml DATA.PATH_TO_DATA_DIR /data/k400
    python tools/slurm.py --local run_net --cfg configs/demo/iR3D18.yaml

What follows the options is the name of a script of tools/ or data_prep/ and its arguments. Needs submitit:
pip install 'video_iresnet[submitit]'. The job runs in this folder, with a task for each GPU, or one for each
node without any. Logs, the job's script and what submitit needs lie in OUTPUT_DIR/slurm.

SLURM asks a job to stop, 5 minutes before its time is over or when another one needs its nodes; the run then
saves a checkpoint, and the job waits for its restart. scancel ends it, with a checkpoint.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.config import Config, load_config
from video_iresnet.runtime.errors import InputError, printable
from video_iresnet.runtime.root import scripts
from video_iresnet.runtime.slurm import Resources, ScriptTask, submit


def config_of(script: Path, arguments: list[str]) -> Config | None:
    """Return the config of a run, the first one of several; mistakes in them should show before the job waits
    for its turn. None for other scripts.
    """
    if script.stem != "run_net":
        return None
    paths, overrides, _ = runpy.run_path(str(script))["parse"](arguments)
    first, *_ = [load_config(path, overrides) for path in paths]
    return first


def start(options: argparse.Namespace) -> None:
    """Submit the job and print how to follow it."""
    if options.name not in scripts():
        raise InputError(f"there is no script {options.name}; expected one of {', '.join(scripts())}")
    script = scripts()[options.name]
    cfg = config_of(script, options.arguments)
    folder = options.logs or (Path(cfg.OUTPUT_DIR) if cfg else Path()) / "slurm"
    resources = Resources(
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        cpus_per_task=options.cpus_per_task or (1 + cfg.DATA_LOADER.NUM_WORKERS if cfg else 1),
        hours=options.hours,
        restarts=options.restarts,
        more={key: value if sep else True for key, sep, value in (x.partition("=") for x in options.set)},
    )
    job = submit(ScriptTask(str(script), options.arguments), folder, resources, local=options.local)
    log, number = job.paths.stdout, job.job_id
    print(f"job {number}: {printable(script.name)} in {job.num_tasks} task(s)")
    print(f"watch it:  tail -F {printable(str(log))}" + ("" if options.local else f"; squeue --job {number}"))
    print(f"end it:    {'kill' if options.local else 'scancel'} {number}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=0)
    parser.add_argument(
        "--cpus-per-task", type=int, help="(default: 1, and 1 for each of DATA_LOADER.NUM_WORKERS)"
    )
    parser.add_argument("--hours", type=float, default=24, help="time limit (default: %(default)s)")
    parser.add_argument(
        "--restarts", type=int, default=10, help="at most so many after a time limit (default: %(default)s)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="any of sbatch; may be repeated"
    )
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="(default: OUTPUT_DIR/slurm, or slurm)")
    parser.add_argument("--local", action="store_true", help="run the job on this machine, without SLURM")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    options = parser.parse_args(arguments)
    return exit_code(lambda: start(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
