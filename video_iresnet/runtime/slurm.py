"""Scripts as jobs of SLURM that go on by themselves, by way of submitit."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError, missing_extra

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

WARNING_SECONDS = 300  # from SIGUSR1 to the end of a job's time


class Resources(NamedTuple):
    """What a job asks for. It has a task for each GPU, or one for each node without any.

    `restarts`: how often it goes on after its hours; a preempted one always does. `more`: options of sbatch.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    hours: float = 1.0
    restarts: int = 10
    more: Mapping[str, str | bool] = {}


class ScriptTask:
    """A task of a job: runs a script as `python SCRIPT ARGUMENTS` does, and asks for a restart after a stop.

    SLURM announces the end of a job's time by SIGUSR1 and a preemption by SIGTERM. The script's own handlers
    save a checkpoint and end it with 128 and the signal's number; then submitit's is called, which counts and
    asks for the restart. SIGTERM also comes when SLURM ends a job: after scancel, or to start it again by
    itself. It counts as running no more then, and nothing is asked for.
    """

    def __init__(self, script: str, arguments: Sequence[str]) -> None:
        self.script = script
        self.arguments = list(arguments)

    def __call__(self) -> None:
        import submitit

        restart = signal.getsignal(signal.SIGUSR1)  # submitit's handler, which the script replaces
        code = self._run()
        job = submitit.JobEnvironment()
        if code in (128 + signal.SIGUSR1, 128 + signal.SIGTERM):
            if job.global_rank:
                sys.exit(0)  # another status might let srun end process 0 before it has asked
            if code == 128 + signal.SIGUSR1 or (job.cluster == "slurm" and _is_running(job.job_id)):
                signal.signal(signal.SIGUSR1, restart)
                try:
                    signal.raise_signal(signal.SIGUSR1)
                except subprocess.CalledProcessError:  # scontrol may end with the job before it has heard
                    if _is_running(job.job_id):
                        raise
        if code:
            sys.exit(code)  # without a traceback: the script has said why

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit is to start again: the same, since scripts go on from what they saved."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self) -> int:
        sys.argv[:] = [self.script, *self.arguments]
        try:
            runpy.run_path(self.script, run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0


def _is_running(job: str) -> bool:
    """Whether SLURM counts a job as running, and not as completing."""
    command = ["squeue", "--noheader", f"--job={job}", "--format=%T"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout.strip() == b"RUNNING"


def submit(task: ScriptTask, folder: Path, resources: Resources, *, local: bool = False) -> Job[None]:
    """Submit a task to SLURM by sbatch or, with `local`, start it in the background of this machine. Logs go
    to the folder.

    Raises InputError if submitit or sbatch is missing, or if sbatch refuses the job.
    """
    # Read when submitit is imported, here and in the job. Its default, SIGUSR2, would end scripts at once.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    try:
        import cloudpickle
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError as error:
        raise missing_extra("submitting to SLURM", "submitit", error) from None
    if not local and not shutil.which("sbatch"):
        raise InputError(
            "there is no sbatch here; submit on a machine of a SLURM cluster, or run the job on this machine "
            "with --local"
        )
    if local and resources.nodes > 1:
        raise InputError(f"--nodes is {resources.nodes}, expected 1 with --local")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the job may not find this package
    executor = submitit.AutoExecutor(
        folder,
        cluster="local" if local else "slurm",
        slurm_max_num_timeout=resources.restarts,
        local_max_num_timeout=resources.restarts,
    )
    executor.update_parameters(**_parameters(Path(task.script).stem, resources))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where submitit repeats what the error says
            return executor.submit(task)
    except FailedJobError as error:
        raise InputError(f"sbatch did not take the job: {' '.join(str(error).split())}") from None


def _parameters(name: str, resources: Resources) -> dict[str, Any]:
    more = {key.replace("-", "_"): value for key, value in resources.more.items()}
    return {
        "name": name,
        "nodes": resources.nodes,
        "tasks_per_node": resources.gpus_per_node or 1,
        "gpus_per_node": resources.gpus_per_node or None,
        "cpus_per_task": resources.cpus_per_task,
        "timeout_min": max(1, round(60 * resources.hours)),
        "stderr_to_stdout": True,
        "slurm_signal_delay_s": WARNING_SECONDS,
        # Since SLURM 22.05, srun does not take this from sbatch.
        "slurm_srun_args": [f"--cpus-per-task={resources.cpus_per_task}"],
        "slurm_additional_parameters": {"requeue": True, **more},
    }
