"""The output folder of a run: lock, position and checkpoints."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from . import build
from .changes import check_going_on, tested_values
from .config import Config, check_files, leaves
from .data.dataset import ViewDataset
from .data.loader import EpochBatches
from .data.packed import PackedRecords
from .engine.checkpoint import (
    BEST,
    Position,
    checkpoint_name,
    list_checkpoints,
    load_latest,
    prune_checkpoints,
    remove_unfinished,
    save_checkpoint,
)
from .engine.journal import Journal, Trace
from .engine.step import Step
from .engine.verdict import loading_verdict
from .engine.views import FORMAT, ViewStore, weights_hash
from .models import ResNet, load_weights
from .runtime.cores import usable_cores
from .runtime.devices import prepare
from .runtime.distributed import Processes
from .runtime.environment import device_name, environment
from .runtime.errors import InputError, InterruptedRunError
from .runtime.logging import Stats, log, setup_logging
from .runtime.signals import StopRequest
from .runtime.stamp import OF_RESULTS, Stamp, add_stamp, difference, lines
from .runtime.storage import atomic_write, exclusive, make_output_dir, path_manager, remove_leftovers
from .runtime.weights_and_biases import Send, sent_records

# Files of an OUTPUT_DIR that are replaced as a whole.
WRITTEN_WHOLE = (
    "config.yaml", "stamp.json", "wandb_id", "first_batch.png", "results.json", "predictions.csv",
    "report.html",
)  # fmt: skip


@contextmanager
def opened(cfg: Config, stop: StopRequest) -> Iterator[Run]:
    """Start processes and logging; create the output folder and lock it while the block runs."""
    processes = Processes(use_gpu=cfg.NUM_GPUS > 0)
    with ExitStack() as held:
        with processes.together():
            if processes.is_main:
                check_files(cfg)
            folder = make_output_dir(cfg.OUTPUT_DIR)
            if processes.is_main:
                held.enter_context(exclusive(folder))
            setup_logging(folder, processes.rank)
            if processes.is_main:
                remove_leftovers(folder, WRITTEN_WHOLE)
                remove_unfinished(folder / "checkpoints")
        prepare(processes.device, cfg.ALLOW_TF32, processes.local_size)
        if cfg.TEST.ENABLE and cfg.DATA.TEST_CROP_SIZE < cfg.DATA.TRAIN_CROP_SIZE:
            log.warning(
                "DATA.TEST_CROP_SIZE %d is smaller than DATA.TRAIN_CROP_SIZE %d; testing at the training "
                "size or above is more accurate",
                cfg.DATA.TEST_CROP_SIZE,
                cfg.DATA.TRAIN_CROP_SIZE,
            )
        devices = processes.gather(device_name(processes.device))
        this = Run(cfg, processes, folder, stop, environment(devices) if processes.is_main else {})
        with processes.together():
            if cfg.WANDB.ENABLE and processes.is_main:
                config = dict(leaves(cfg)) | {"stamp": this.stamp}
                this.followers.append(held.enter_context(sent_records(cfg.WANDB.PROJECT, folder, config)))
        yield this


class Run:
    """A run: its processes, output folder, position and checkpoints."""

    def __init__(
        self, cfg: Config, processes: Processes, folder: Path, stop: StopRequest, environment: Stamp
    ) -> None:
        self.cfg = cfg
        self.processes = processes
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.stop = stop
        self.position = Position()
        # Saved in checkpoints: the class names, the fingerprint of the training list, and the stamp.
        self.contents: dict[str, Any] = {}
        self.stamp = {**environment, "config": _short(hashlib.sha256(cfg.dump().encode()).hexdigest())}
        # Get each record of the run, on the main process.
        self.followers: list[Send] = []
        self._is_stamped = False
        self._saved_at = time.monotonic()
        self._records: dict[str, PackedRecords] = {}

    @functools.cached_property
    def num_epochs(self) -> int:
        """The number of epochs of the training."""
        return build.build_phases(self.cfg)[-1].end_epoch

    def records(self, key: str, max_missing: float = 1.0) -> PackedRecords:
        """Return the records of a list, which the main process reads once; see build_records. All processes
        must call it alike.
        """
        if key not in self._records:
            self._records[key] = self.processes.from_main(
                lambda: build.build_records(self.cfg, key, max_missing)
            )
        return self._records[key]

    def resume(self, step: Step, train_list: str) -> str:
        """Load the latest checkpoint, or else the initial weights. Returns the changes of the config since,
        as text. `train_list`: the fingerprint of the list.
        """
        classes = build.build_class_names(self.cfg)
        names = list(classes.names) if classes else []
        self.stamp["train_list"] = train_list
        self.contents = {"class_names": names, "train_list": train_list, "stamp": self.stamp}
        checkpoints = list_checkpoints(self.checkpoints)
        if not checkpoints:
            self._load_start(step.network)
            self.stamp["initial_weights"] = _short(weights_hash(step.network.state_dict()))
            return ""
        latest = checkpoints[-1]
        if not self.cfg.TRAIN.AUTO_RESUME:
            raise InputError(
                f"OUTPUT_DIR {self.folder} contains checkpoints of an earlier run; name another folder, or "
                "set TRAIN.AUTO_RESUME True to resume from them"
            )
        state = load_latest(latest)
        changes = check_going_on(self.cfg, state, self.contents, str(latest))
        step.load_state_dict(state, latest)
        self.position = Position(**state["position"])
        log.info("resuming from %s, after %s", latest, self.position)
        self._compare_stamps(state.get("stamp"))
        return changes

    def _compare_stamps(self, then: object) -> None:
        """Log how the stamp of a checkpoint differs; take over what only the start of a training knows."""
        if not isinstance(then, dict):
            return  # of an older version
        if "initial_weights" in then:
            self.stamp["initial_weights"] = then["initial_weights"]
        if changes := difference(then, self.stamp):
            log.info("resumed with %s", changes)

    def _load_start(self, network: ResNet) -> None:
        """Load the weights of TRAIN.CHECKPOINT_FILE_PATH, if given."""
        name = self.cfg.TRAIN.CHECKPOINT_FILE_PATH
        if not name:
            return
        path = path_manager.get_local_path(name)
        report = load_weights(network, path, inflate=self.cfg.TRAIN.CHECKPOINT_INFLATE)
        log.info("starting from the weights of %s", name)
        for line in str(report).splitlines():
            log.info("%s", line)
        if "fc.weight" in report.loaded and self.other_class_names(report.class_names):
            log.warning(
                "the head keeps the weights of %s, which has other class names: %s, ...",
                path,
                ", ".join(report.class_names[:3]),
            )

    def save(self, step: Step, name: str = "") -> Path:
        """Save a checkpoint and delete the oldest ones; returns its path. As in PySlowFast, `epoch` is the
        last complete one, counted from 0.
        """
        position = self.position
        path = self.checkpoints / (name or checkpoint_name(position.epoch, position.step))
        size = self.cfg.DATA.TRAIN_CROP_SIZE
        with self.processes.together():
            if self.processes.is_main:
                state = step.state_dict() | self.contents
                state |= {
                    "epoch": position.epoch - 1,
                    "position": position.state_dict(),
                    "cfg": self.cfg.dump(),
                    "protocol": f"trained on clips of {build.clip_text(self.cfg)} @{size}",
                }
                save_checkpoint(path, state)
                prune_checkpoints(self.checkpoints, self.cfg.TRAIN.CHECKPOINTS_KEPT)
        if name != BEST:  # from which no run resumes
            self._saved_at = time.monotonic()
        return path

    def is_late(self) -> bool:
        """Whether TRAIN.CHECKPOINT_MINUTES have passed since the last checkpoint; False on all but the main
        process.
        """
        minutes = self.cfg.TRAIN.CHECKPOINT_MINUTES
        return self.processes.is_main and 0 < 60 * minutes <= time.monotonic() - self._saved_at

    def tested_checkpoint(self) -> str:
        """Return the path of the weights to test."""
        latest = [str(path) for path in list_checkpoints(self.checkpoints)[-1:]]
        for path in [self.cfg.TEST.CHECKPOINT_FILE_PATH, *latest, self.cfg.TRAIN.CHECKPOINT_FILE_PATH]:
            if path:
                return str(path)
        raise InputError(
            f"no weights to test in {self.checkpoints}; name a checkpoint with "
            "TEST.CHECKPOINT_FILE_PATH, or train first"
        )

    def other_class_names(self, class_names: Sequence[str]) -> bool:
        """Whether class names of weights differ from the config's; False if either has none."""
        ours = build.build_class_names(self.cfg)
        return bool(ours and class_names and list(ours.names) != list(class_names))

    def view_store(
        self,
        network: ResNet,
        data: ViewDataset,
        records: PackedRecords,
        checks: list[str],
        class_names: list[str],
        arithmetic: dict[str, Any],
    ) -> ViewStore:
        """Return the store of a test's views, identified by everything its numbers depend on; `arithmetic` is
        that of its forward passes. All processes must call it alike.
        """
        about = {
            "format": FORMAT,
            "weights": weights_hash(network.state_dict()),
            "config": tested_values(self.cfg),
            **self.processes.from_main(records.identity),
            "device": self.processes.device.type,
            "arithmetic": arithmetic,
            "dtype": "float16" if self.cfg.TEST.STORED_VIEWS == "float16" else "float32",
            "protocol": f"{data.protocol}, clips of {build.clip_text(self.cfg)}",
            "checks": checks,
            "class_names": class_names,
            "num_classes": self.cfg.MODEL.NUM_CLASSES,
            "num_videos": len(records),
            "num_clips": data.num_clips,
            "num_crops": data.num_crops,
        }
        return ViewStore(self.folder / "views", about)

    def write_config(self) -> None:
        """Write config.yaml; called once the config is known to fit the contents of the folder."""
        if self.processes.is_main:
            with atomic_write(self.folder / "config.yaml") as file:
                file.write(self.cfg.dump())

    def write_stamp(self) -> None:
        """Log the stamp, and append it to stamp.json if it differs from the last one; once in a run."""
        if not self.processes.is_main or self._is_stamped:
            return
        self._is_stamped = True
        for line in lines(self.stamp):
            log.info("%s", line)
        add_stamp(self.folder / "stamp.json", self.stamp)

    def stamp_of_results(self, store: ViewStore) -> dict[str, Any]:
        """Return what the results of a test may depend on: not what may differ between equal ones."""
        found = {name: self.stamp[name] for name in OF_RESULTS}
        return found | {"weights": _short(store.about["weights"]), "test_list": store.about["list"]}

    def stats(self, first_step: int = 0) -> Stats:
        """Return the records of the run."""
        return Stats(self.folder, first_step, self.followers)

    def journal(self, batches: EpochBatches) -> Journal:
        """Return the log of the training, which continues at the current position."""
        first_step = batches.steps_before(self.position.epoch) + self.position.step
        stats = self.stats(first_step) if self.processes.is_main else None
        if stats:
            stats.text("config", self.cfg.dump(), first_step)
        steps = self.cfg.TRAIN.PROFILE_STEPS if self.processes.is_main else []
        return Journal(
            stats,
            self.processes.device,
            batches,
            self.num_epochs,
            self.cfg.LOG_PERIOD,
            self.processes.size,
            Trace(self.folder / "trace.json", *steps) if steps else Trace(),
            functools.partial(
                loading_verdict,
                num_workers=self.cfg.DATA_LOADER.NUM_WORKERS,
                usable_cores=max(1, usable_cores() // self.processes.local_size),
                remedy="smaller pictures"
                if self.cfg.MODEL.DIMS == 2
                else "transcoding (data_prep/transcode.py)",
            ),
        )

    def due(self, period: int) -> bool:
        """Whether the epoch is a multiple of `period`, or the last one."""
        epoch = self.position.epoch
        return epoch == self.num_epochs or (epoch > 0 and epoch % period == 0)

    def is_complete(self) -> bool:
        """Whether all epochs are trained and the last one is validated."""
        epoch, last = self.position.epoch, self.num_epochs
        return epoch > last or (epoch == last and self.position.validated())

    def interrupted(self, message: str) -> InterruptedRunError:
        return InterruptedRunError(self.stop.signal, message)

    def end_if_asked(self, message: str) -> None:
        """Raise InterruptedRunError on all processes if one was asked to stop."""
        if self.processes.sum([int(bool(self.stop))])[0]:
            raise self.interrupted(message)


def _short(digest: str) -> str:
    """Return as many digits of a hash as tell apart what people compare."""
    return digest[:16]
