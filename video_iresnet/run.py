"""The story of a run: train and test, readable from top to bottom."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import build
from .changes import check_going_on, check_testing, tested_values
from .config import Config, needed_files
from .data.dataset import ViewDataset
from .data.loader import clip_loader, view_loader
from .data.packed import PackedRecords
from .data.records import Record, file_sizes
from .engine.aggregate import Prediction, results
from .engine.checkpoint import (
    BEST,
    Position,
    checkpoint_name,
    list_checkpoints,
    load_latest,
    prune_checkpoints,
    read_position,
    read_tested,
    remove_unfinished,
    save_checkpoint,
)
from .engine.evaluate import FrameOrder, evaluate, temporal_checks
from .engine.journal import Journal
from .engine.step import Step
from .engine.tasks import Task
from .engine.train import Agreement, BadVideos, train_epoch
from .engine.views import FORMAT, VideoOutputs, ViewStore, weights_hash
from .models import ResNet, load_weights
from .report.results import table, write_predictions, write_results
from .runtime.distributed import Processes
from .runtime.environment import usable_cores
from .runtime.errors import InputError, InterruptedRunError
from .runtime.logging import Stats, log, setup_logging
from .runtime.seeding import Stream, integer_seed
from .runtime.signals import StopRequest
from .runtime.storage import atomic_write, exclusive, make_output_dir, path_manager, remove_leftovers


def run(cfg: Config, stop: StopRequest) -> None:
    """Train where TRAIN.ENABLE, then test where TEST.ENABLE; no other run may use OUTPUT_DIR meanwhile.

    Raises InputError for what a user can put right, InterruptedRunError after a request to stop.
    """
    with opened(cfg, stop) as this:
        if cfg.TRAIN.ENABLE:
            train(this)
        if cfg.TEST.ENABLE:
            test(this)


def train(run: Run) -> None:
    """Train, validate and write checkpoints; resume where an earlier run of this OUTPUT_DIR stopped."""
    cfg, processes = run.cfg, run.processes
    with processes.together():
        records = run.records("DATA.TRAIN_LIST", cfg.DATA.MAX_BAD_FRACTION)
        validation = build.build_validation_data(cfg, run.records("DATA.VAL_LIST"))
        if cfg.TEST.ENABLE:
            run.records("DATA.TEST_LIST")  # a mistake in it should show now, not after the training
        batches = build.build_batches(cfg, len(records), processes.rank, processes.size)
        torch.manual_seed(integer_seed(cfg.RNG_SEED, Stream.WEIGHTS))
        network = build.build_network(cfg, processes.device)
    step = build.build_step(cfg, network, processes)
    with processes.together():
        changes = run.resume(step, records.fingerprint())
    position = run.position
    if run.is_complete():
        log.info(
            "training is complete: %d epochs were done before; to train again, name another OUTPUT_DIR%s",
            position.epoch,
            f" (without effect now: {changes})" if changes else "",
        )
        run.end_if_asked("stopped; the training was complete before")
        return
    if position.step >= batches.steps_per_epoch:
        raise InputError(
            f"{run.folder} stands after step {position.step} of an epoch, but now an epoch has "
            f"{batches.steps_per_epoch} steps; go on with the TRAIN.BATCH_SIZE and the list of before, or "
            "name another OUTPUT_DIR"
        )
    batches.start = position.epoch, position.step
    if changes:
        log.info("this takes effect from here on: %s", changes)
    with processes.together():
        run.write_config()
    journal = run.journal(batches.steps_per_epoch)
    agreement = Agreement(processes, run.stop, BadVideos(records, cfg.DATA.MAX_BAD_FRACTION))
    log.info(
        "training %s-%d (%.2fM parameters) on %d videos: %d epochs of %d steps of %d clips; %d process(es), "
        "%s",
        cfg.MODEL.ARCH, cfg.RESNET.DEPTH, sum(p.numel() for p in network.parameters()) / 1e6, len(records),
        cfg.SOLVER.MAX_EPOCH, batches.steps_per_epoch, cfg.TRAIN.BATCH_SIZE, processes.size, processes.device,
    )  # fmt: skip
    data = build.build_training_data(cfg, records)
    with clip_loader(data, batches, **build.loading(cfg, processes.device)) as loader:
        clips = iter(loader)
        while True:
            if run.due(cfg.TRAIN.EVAL_PERIOD) and not position.validated():
                validate(run, step, validation, journal)
                if position.is_best():
                    run.save(step, BEST)
                if run.due(cfg.TRAIN.CHECKPOINT_PERIOD):
                    run.save(step)
            if position.epoch == cfg.SOLVER.MAX_EPOCH:
                break
            if not train_epoch(step, clips, position, agreement, journal):
                where = f"epoch {position.epoch + 1} after step {position.step} of {batches.steps_per_epoch}"
                raise run.interrupted(f"stopped in {where}; saved {run.save(step)}")
            if run.due(cfg.TRAIN.CHECKPOINT_PERIOD):
                run.save(step)
    log.info("training is complete: %d epochs, last checkpoint in %s", position.epoch, run.checkpoints)
    run.end_if_asked(f"stopped after training, which is complete; saved in {run.checkpoints}")


def validate(run: Run, step: Step, data: ViewDataset, journal: Journal) -> None:
    """Add the accuracy at the centre of each video to the history. Raises InterruptedRunError after a request
    to stop.
    """
    begin = time.perf_counter()
    found: list[tuple[int, Prediction | None, str]] = []

    def classify(videos: list[VideoOutputs]) -> None:
        for record, outputs, error in videos:
            found.append((record, None if error else step.task.predict(outputs[""]), error))

    if not _evaluate(run, data, step.network, step.task, classify, {}, ()):
        raise run.interrupted(f"stopped while validating epoch {run.position.epoch}; saved {run.save(step)}")
    everywhere = sorted(video for some in run.processes.gather(found) for video in some)
    errors = [error for *_, error in everywhere]
    _check_failures(errors, data.records)
    accuracies = step.task.measure(
        [prediction for _, prediction, _ in everywhere], [record.label for record in data.records]
    )
    run.position.history.append({"epoch": run.position.epoch, **accuracies})
    videos = f"{data.protocol}, {len(errors)} videos, {sum(map(bool, errors))} failed"
    journal.validation(run.position, time.perf_counter() - begin, videos)


def test(run: Run) -> None:
    """Multi-view testing; goes on where an earlier test of the same stopped. results.json and predictions.csv
    are functions of the stored views.
    """
    cfg, processes = run.cfg, run.processes
    with processes.together():
        records = run.records("DATA.TEST_LIST")
        path = run.tested_checkpoint()
        weights = read_tested(path)
        if run.other_class_names(weights.class_names):
            raise InputError(
                f"{path} was trained on classes of other names or order "
                f"({', '.join(weights.class_names[:3])}, ...) than DATA.CLASS_NAMES {cfg.DATA.CLASS_NAMES}; "
                "take the list of its training"
            )
        otherwise = check_testing(cfg, weights.info.get("cfg"), path)
        if otherwise and processes.is_main:
            log.warning("the test takes other clips than the training of %s: %s", path, otherwise)
        model = build.build_network(cfg, processes.device)
        report = load_weights(model, weights, strict=True)
        run.write_config()
        data = build.build_test_data(cfg, records)
        checks = temporal_checks(cfg.RNG_SEED) if cfg.TEST.TEMPORAL_CHECKS else {}
        store = run.view_store(model, data, records, list(checks), weights.class_names)
        if processes.is_main:
            store.forget_failed(_group_size(cfg, data))
    with processes.together():
        done = store.records()
    trained = read_position(weights.info)
    log.info(
        "testing %s%s on %d videos, %s",
        report.source,
        f" after {trained}" if trained else "",
        len(records),
        store.about["protocol"],
    )
    if done:
        log.info(
            "%d of %d videos are tested already; to test all again, remove %s",
            len(done),
            len(records),
            store.folder,
        )
    if processes.device.type == "cpu":
        # The order of additions inside a convolution depends on the number of threads, so it must not depend
        # on the number of processes.
        torch.set_num_threads(usable_cores())
    begin = time.perf_counter()
    task = build.build_task(cfg, processes.device)
    writer = store.writer(processes.rank, records)
    finished = _evaluate(run, data, model, task, writer.add, checks, set(done))
    with processes.together():
        writer.flush()
    if not finished:
        raise run.interrupted(f"stopped while testing; what was tested is kept in {store.folder}")
    with processes.together():
        if processes.is_main:
            _write_test(
                run,
                store,
                records,
                {
                    "checkpoint": str(path),
                    "epoch": weights.info.get("epoch"),
                    "class_names": weights.class_names,
                    "seconds": round(time.perf_counter() - begin, 1),
                },
            )
    run.end_if_asked(f"stopped after testing, which is complete; its results are in {run.folder}")


@contextmanager
def opened(cfg: Config, stop: StopRequest) -> Iterator[Run]:
    """Processes and logs, and the output folder, which no other run may use while the block runs."""
    processes = Processes(use_gpu=cfg.NUM_GPUS > 0)
    with ExitStack() as held:
        with processes.together():
            for key, path in needed_files(cfg).items():
                if not path_manager.exists(path):
                    raise InputError(
                        f"{key}: {path} does not exist; correct it, or DATA.PATH_TO_DATA_DIR "
                        f"({cfg.DATA.PATH_TO_DATA_DIR!r})"
                    )
            folder = make_output_dir(cfg.OUTPUT_DIR)
            if processes.is_main:
                held.enter_context(exclusive(folder))
            setup_logging(folder, processes.rank)
            if processes.is_main:
                remove_leftovers(folder, ("config.yaml", "results.json", "predictions.csv"))
                remove_unfinished(folder / "checkpoints")
        if processes.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        else:
            torch.set_num_threads(max(1, usable_cores() // processes.local_size))
        if cfg.TEST.ENABLE and cfg.DATA.TEST_CROP_SIZE < cfg.DATA.TRAIN_CROP_SIZE:
            log.warning(
                "DATA.TEST_CROP_SIZE %d is smaller than DATA.TRAIN_CROP_SIZE %d; testing at the training "
                "size or above is more accurate",
                cfg.DATA.TEST_CROP_SIZE,
                cfg.DATA.TRAIN_CROP_SIZE,
            )
        yield Run(cfg, processes, folder, stop)


class Run:
    """The output folder, how far the training in it is, and its checkpoints."""

    def __init__(self, cfg: Config, processes: Processes, folder: Path, stop: StopRequest) -> None:
        self.cfg = cfg
        self.processes = processes
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.stop = stop
        self.position = Position()
        # What checkpoints say of the files that the config names, and of the clips.
        self.contents: dict[str, Any] = {}
        self._records: dict[str, PackedRecords] = {}

    def records(self, key: str, max_missing: float = 1.0) -> PackedRecords:
        """The records of a list, read once; see build_records."""
        if key not in self._records:
            self._records[key] = build.build_records(self.cfg, key, max_missing)
        return self._records[key]

    def resume(self, step: Step, train_list: str) -> str:
        """Load the latest checkpoint of the folder, else the weights to start from; returns what has changed
        in the config since. `train_list`: its fingerprint.
        """
        classes = build.build_class_names(self.cfg)
        names = list(classes.names) if classes else []
        self.contents = {"class_names": names, "train_list": train_list}
        checkpoints = list_checkpoints(self.checkpoints)
        if not checkpoints:
            self._load_start(step.network)
            return ""
        latest = checkpoints[-1]
        if not self.cfg.TRAIN.AUTO_RESUME:
            raise InputError(
                f"OUTPUT_DIR {self.folder} holds checkpoints of an earlier run; name another folder, or set "
                "TRAIN.AUTO_RESUME True to go on from them"
            )
        state = load_latest(latest)
        changes = check_going_on(self.cfg, state, self.contents, str(latest))
        step.load_state_dict(state, latest)
        self.position = Position(**state["position"])
        log.info("resuming from %s, after %s", latest, self.position)
        return changes

    def _load_start(self, network: ResNet) -> None:
        """The weights of TRAIN.CHECKPOINT_FILE_PATH, where there are any."""
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
                "the head keeps the weights of %s, whose classes have other names: %s, ...",
                path,
                ", ".join(report.class_names[:3]),
            )

    def save(self, step: Step, name: str = "") -> Path:
        """Write a checkpoint, in PySlowFast's form (`epoch` is the last whole one, from 0) with what an exact
        restart needs besides; remove those that are no longer kept. Returns its path.
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
        return path

    def tested_checkpoint(self) -> str:
        """The file of the weights to test."""
        latest = [str(path) for path in list_checkpoints(self.checkpoints)[-1:]]
        for path in [self.cfg.TEST.CHECKPOINT_FILE_PATH, *latest, self.cfg.TRAIN.CHECKPOINT_FILE_PATH]:
            if path:
                return str(path)
        raise InputError(
            f"no weights to test: {self.checkpoints} holds none; name a checkpoint with "
            "TEST.CHECKPOINT_FILE_PATH, or train first"
        )

    def other_class_names(self, class_names: Sequence[str]) -> bool:
        """Whether weights have other class names than the config; False where either has none."""
        ours = build.build_class_names(self.cfg)
        return bool(ours and class_names and list(ours.names) != list(class_names))

    def view_store(
        self,
        network: ResNet,
        data: ViewDataset,
        records: PackedRecords,
        checks: list[str],
        class_names: list[str],
    ) -> ViewStore:
        """Where the views of a test are kept, under all that its numbers depend on."""
        sizes = json.dumps(file_sizes(records))
        about = {
            "format": FORMAT,
            "weights": weights_hash(network.state_dict()),
            "config": tested_values(self.cfg),
            "list": records.fingerprint(),
            "file_sizes": hashlib.sha256(sizes.encode()).hexdigest(),
            "device": self.processes.device.type,
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
        """Write the config with all its keys; called when it is known to fit what stands in the folder."""
        if self.processes.is_main:
            with atomic_write(self.folder / "config.yaml") as file:
                file.write(self.cfg.dump())

    def journal(self, steps_per_epoch: int) -> Journal:
        """The log of the training, from its position on."""
        first_step = self.position.epoch * steps_per_epoch + self.position.step
        stats = Stats(self.folder, first_step) if self.processes.is_main else None
        device, num_epochs = self.processes.device, self.cfg.SOLVER.MAX_EPOCH
        return Journal(stats, device, steps_per_epoch, num_epochs, self.cfg.LOG_PERIOD)

    def due(self, period: int) -> bool:
        """Whether something that happens every `period` epochs, and after the last one, happens now."""
        epoch = self.position.epoch
        return epoch == self.cfg.SOLVER.MAX_EPOCH or (epoch > 0 and epoch % period == 0)

    def is_complete(self) -> bool:
        """Whether the training is done, its last validation included."""
        epoch, last = self.position.epoch, self.cfg.SOLVER.MAX_EPOCH
        return epoch > last or (epoch == last and self.position.validated())

    def interrupted(self, message: str) -> InterruptedRunError:
        return InterruptedRunError(self.stop.signal, message)

    def end_if_asked(self, message: str) -> None:
        """Raise InterruptedRunError, on all processes, where one was asked to stop."""
        if self.processes.sum([int(bool(self.stop))])[0]:
            raise self.interrupted(message)


def _evaluate(
    run: Run,
    data: ViewDataset,
    model: nn.Module,
    task: Task,
    sink: Callable[[list[VideoOutputs]], None],
    checks: Mapping[str, FrameOrder],
    done: Collection[int],
) -> bool:
    """See evaluate; the videos of `done` are left out."""
    cfg = run.cfg
    with view_loader(
        data,
        videos_at_once=_group_size(cfg, data),
        rank=run.processes.rank,
        world_size=run.processes.size,
        done=done,
        **build.loading(cfg, run.processes.device),
    ) as loader:
        return evaluate(
            model,
            loader,
            task,
            sink,
            crop_size=data.crop_size,
            batch_size=cfg.TEST.BATCH_SIZE,
            checks=checks,
            processes=run.processes,
            stop=run.stop,
        )


def _group_size(cfg: Config, data: ViewDataset) -> int:
    """The number of videos whose views make a batch."""
    return max(1, int(cfg.TEST.BATCH_SIZE) // (data.num_clips * data.num_crops))


def _check_failures(errors: Sequence[str], records: Sequence[Record]) -> None:
    """Log which videos failed. Raises InputError where all did."""
    for error, record in zip(errors, records, strict=True):
        if error:
            log.warning("%s: %s; it counts as failed", record.path, error)
    if all(errors):
        raise InputError(
            f"none of the {len(records)} videos can be classified; the first is {records[0].path} "
            f"({errors[0]})"
        )


def _write_test(run: Run, store: ViewStore, records: Sequence[Record], more: dict[str, Any]) -> None:
    """results.json, predictions.csv, a line in json_stats.log, and the table in the log."""
    numbers, outcome = results([store])
    _check_failures(outcome.errors, records)
    is_kept = run.cfg.TEST.STORED_VIEWS != "off"
    numbers |= more | {"views": str(store.folder.relative_to(run.folder)) if is_kept else ""}
    *_, protocol = numbers["by_views"]
    write_predictions(run.folder / "predictions.csv", outcome, outcome.predictions[protocol])
    write_results(run.folder / "results.json", numbers)
    if not is_kept:
        store.remove()
    accuracies = {key: numbers[key] for key in ("top1_acc", "top5_acc")}
    Stats(run.folder).write({"_type": "test_final", "split": "test_final", **accuracies}, 0)
    for line in table(numbers).splitlines():
        log.info("%s", line)
    log.info(
        "results: %s; one line a video: %s; curves: tensorboard --logdir %s",
        run.folder / "results.json",
        run.folder / "predictions.csv",
        run.folder,
    )
