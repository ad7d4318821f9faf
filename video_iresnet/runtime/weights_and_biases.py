"""Records of a run at Weights & Biases, with the package wandb."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from .errors import missing_extra, reason
from .logging import log
from .storage import atomic_write

Send: TypeAlias = Callable[[Mapping[str, Any], int], None]
# Seconds to wait for an answer to a question about the account, and for the last records to be sent.
LONGEST_WAIT = 60.0


class _Guard:
    """Calls functions; after the first error, which is logged as one warning, it calls none."""

    def __init__(self) -> None:
        self.has_failed = False

    def __call__(self, work: Callable[[], Any]) -> Any:
        if self.has_failed:
            return None
        try:
            return work()
        except Exception as error:  # whatever happens there, the run goes on
            self.has_failed = True
            log.warning("Weights & Biases: %s; the run goes on, and sends nothing more", reason(error))
            return None


@contextmanager
def sent_records(project: str, folder: Path, config: Mapping[str, Any]) -> Iterator[Send]:
    """Start a run at Weights & Biases, or continue the one whose id is in the folder, while the block runs.
    Yields a function that sends a record of json_stats and its step.

    Without a network, `WANDB_MODE=offline` keeps the records in FOLDER/wandb, for `wandb sync`. Raises
    InputError if the package is missing; any other failure is one warning.
    """
    try:
        import wandb
    except ImportError as error:
        raise missing_extra("WANDB.ENABLE", "wandb", error, ", or set WANDB.ENABLE False") from error
    guard = _Guard()
    run = guard(lambda: _start(wandb, project, folder, config))

    def send(record: Mapping[str, Any], step: int) -> None:
        kind = str(record["_type"]).rstrip("_")
        values = {f"{kind}/{name}": value for name, value in record.items() if name != "_type"}
        guard(lambda: run.log({**values, "step": step}))

    try:
        yield send
    except BaseException:
        guard(lambda: run.finish(exit_code=1))
        raise
    guard(lambda: run.finish(exit_code=0))


def _start(wandb: Any, project: str, folder: Path, config: Mapping[str, Any]) -> Any:
    run = wandb.init(
        project=project,
        id=_run_id(folder / "wandb_id"),
        name=folder.resolve().name,
        dir=str(folder),
        resume="allow",
        config=dict(config),
        allow_val_change=True,
        settings=wandb.Settings(
            console="off", silent=True, login_timeout=LONGEST_WAIT, finish_timeout=LONGEST_WAIT
        ),
    )
    if run.disabled:
        log.warning("Weights & Biases is disabled (WANDB_MODE, or no login); nothing is sent")
    else:
        offline = f"offline; to send the records: wandb sync {os.path.dirname(run.dir)}"
        log.info("Weights & Biases: %s", offline if run.offline else run.url)
    # A run that was killed repeats steps, and W&B's own step never goes back.
    run.define_metric("*", step_metric="step")
    return run


def _run_id(path: Path) -> str:
    """Return the id in a file, which is written if it does not exist."""
    text = path.read_text().strip() if path.exists() else ""
    if not re.fullmatch(r"[a-z0-9]{1,64}", text):
        text = secrets.token_hex(4)
        with atomic_write(path) as file:
            file.write(f"{text}\n")
    return text
