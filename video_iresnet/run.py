"""The story of a run: train and test, readable from top to bottom."""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simplejson
import torch
from tabulate import tabulate
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from . import build
from .changes import check_going_on, check_testing
from .config import Config, needed_files
from .data.dataset import ViewDataset
from .data.loader import EpochBatches, clip_loader, view_loader
from .data.packed import PackedRecords
from .data.records import Record, missing_videos
from .engine.batchnorm import share_buffers
from .engine.checkpoint import (
    BEST,
    checkpoint_name,
    intact_before,
    list_checkpoints,
    load_checkpoint,
    load_model_state,
    prune_checkpoints,
    remove_unfinished,
    save_checkpoint,
    verify_checksums,
)
from .engine.evaluate import (
    Accuracy,
    FrameOrder,
    VideoResult,
    accuracy,
    evaluate,
    temporal_checks,
    view_subsets,
)
from .engine.metrics import TOP, train_stats
from .engine.optim import load_momenta
from .engine.train import BadVideos, EpochResult, Trainer, epoch_line, hours, train_epoch
from .models import ResNet, WeightsError, load_weights, read_weights
from .models.weights import Weights
from .runtime.distributed import Processes
from .runtime.errors import InputError
from .runtime.logging import Stats, log, setup_logging
from .runtime.seeding import Stream, integer_seed
from .runtime.signals import StopRequest
from .runtime.storage import atomic_write, exclusive, make_output_dir, path_manager, remove_leftovers


class InterruptedRunError(Exception):
    """A run that ended in order on Ctrl-C, SIGTERM or SIGUSR1; the message says what was saved."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number or signal.SIGTERM


@dataclass
class Position:
    """How far a training run is: whole epochs, steps of the next one with their sums, and the validations so
    far.
    """

    epoch: int = 0
    step: int = 0
    sums: list[float] | None = None
    history: list[dict[str, float]] = field(default_factory=list)

    def validated(self) -> bool:
        return any(past["epoch"] == self.epoch for past in self.history)


def run(cfg: Config, stop: StopRequest) -> None:
    """Train where TRAIN.ENABLE, then test where TEST.ENABLE; no other run may use OUTPUT_DIR meanwhile.

    Raises InputError for what a user can put right, InterruptedRunError after a request to stop.
    """
    with _started(cfg) as (processes, folder):
        if cfg.TRAIN.ENABLE:
            train(cfg, processes, folder, stop)
        if cfg.TEST.ENABLE:
            test(cfg, processes, folder, stop)


def train(cfg: Config, processes: Processes, folder: Path, stop: StopRequest) -> None:
    """Train, validate and write checkpoints; goes on where an earlier run of the same OUTPUT_DIR stopped."""
    with processes.together():
        records = _records(cfg, "DATA.TRAIN_LIST", cfg.DATA.MAX_BAD_SHARE)
        validation = build.build_validation_data(cfg, _records(cfg, "DATA.VAL_LIST"))
        if cfg.TEST.ENABLE:
            _test_records(cfg)  # a mistake in it should show now, not after the training
        _check_batch_size(cfg, len(records), processes.size)
        torch.manual_seed(integer_seed(cfg.RNG_SEED, Stream.WEIGHTS))
        model = _network(cfg, processes.device)
        optimizer = build.build_optimizer(cfg, model)
        classes = build.build_class_names(cfg)
        contents = {
            "class_names": list(classes.names) if classes else [],
            "train_list": records.fingerprint(),
        }
        position, changes = _resume(cfg, folder, contents, model, optimizer)
    if position.epoch > cfg.SOLVER.MAX_EPOCH or (
        position.epoch == cfg.SOLVER.MAX_EPOCH and position.validated()
    ):
        log.info(
            "training is complete: %d epochs were done before; to train anew, name another OUTPUT_DIR%s",
            position.epoch,
            f" (without effect now: {changes})" if changes else "",
        )
        _check_stop(processes, stop, "stopped; the training was complete before")
        return
    batches = EpochBatches(
        len(records),
        [build.build_batch_shape(cfg)],
        seed=cfg.RNG_SEED,
        rank=processes.rank,
        world_size=processes.size,
        start=(position.epoch, position.step),
        num_samples=cfg.AUG.NUM_SAMPLE,
    )
    steps = batches.steps_per_epoch
    if position.step >= steps:
        raise InputError(
            f"{folder} stands after step {position.step} of an epoch, but now an epoch has {steps} steps; go "
            "on with the TRAIN.BATCH_SIZE and the list of before, or name another OUTPUT_DIR"
        )
    if changes:
        log.info("this takes effect from here on: %s", changes)
    with processes.together():
        _write_config(cfg, processes, folder)
    on_gpu = processes.device.type == "cuda"
    data = build.build_training_data(cfg, records)
    loader = clip_loader(
        data,
        batches,
        num_workers=cfg.DATA_LOADER.NUM_WORKERS,
        pin_memory=on_gpu,
        timeout=cfg.DATA_LOADER.TIMEOUT,
    )
    trainer = Trainer(
        model=DistributedDataParallel(model) if processes.size > 1 else model,
        optimizer=optimizer,
        schedule=build.build_schedule(cfg),
        batches=iter(loader),
        to_network=build.build_to_network(cfg, processes.device),
        targets=build.build_targets(cfg),
        bad_videos=BadVideos(records, cfg.DATA.MAX_BAD_SHARE),
        processes=processes,
        stop=stop,
        stats=Stats(folder, position.epoch * steps + position.step) if processes.is_main else None,
        steps_per_epoch=steps,
        num_epochs=cfg.SOLVER.MAX_EPOCH,
        log_period=cfg.LOG_PERIOD,
        seed=cfg.RNG_SEED,
    )
    log.info(
        "training %s-%d (%.2fM parameters) on %d videos: %d epochs of %d steps of %d clips; %d process(es), "
        "%s",
        cfg.MODEL.ARCH, cfg.RESNET.DEPTH, sum(p.numel() for p in model.parameters()) / 1e6, len(records),
        cfg.SOLVER.MAX_EPOCH, steps, cfg.TRAIN.BATCH_SIZE, processes.size, processes.device,
    )  # fmt: skip

    def save(name: str = "") -> Path:
        path = folder / "checkpoints" / (name or checkpoint_name(position.epoch, position.step))
        with processes.together():
            if processes.is_main:
                save_checkpoint(path, _state(cfg, contents, model, optimizer, position))
                prune_checkpoints(path.parent, cfg.TRAIN.CHECKPOINTS_KEPT)
        return path

    with loader:
        while True:
            if _due(position.epoch, cfg.TRAIN.EVAL_PERIOD, cfg.SOLVER.MAX_EPOCH) and not position.validated():
                if not _validate(cfg, trainer, model, validation, position):
                    raise InterruptedRunError(
                        stop.signal, f"stopped while validating epoch {position.epoch}; saved {save()}"
                    )
                if position.history[-1] is max(position.history, key=lambda past: past["top1"]):
                    save(BEST)
                if _due(position.epoch, cfg.TRAIN.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_EPOCH):
                    save()
            if position.epoch == cfg.SOLVER.MAX_EPOCH:
                break
            result = train_epoch(trainer, position.epoch, position.step, position.sums)
            share_buffers(model)
            if result.steps < steps:
                position.step, position.sums = result.steps, result.sums
                raise InterruptedRunError(
                    stop.signal,
                    f"stopped in epoch {position.epoch + 1} after step {result.steps} of {steps}; saved "
                    f"{save()}",
                )
            _log_epoch(trainer, position.epoch, result)
            position.epoch, position.step, position.sums = position.epoch + 1, 0, None
            if _due(position.epoch, cfg.TRAIN.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_EPOCH):
                save()
    log.info("training is complete: %d epochs, last checkpoint in %s", position.epoch, folder / "checkpoints")
    _check_stop(processes, stop, f"stopped after training, which is complete; saved in {folder}/checkpoints")


def test(cfg: Config, processes: Processes, folder: Path, stop: StopRequest) -> None:
    """Multi-view testing; writes results.json and predictions.csv."""
    with processes.together():
        records = _test_records(cfg)
        path = _test_checkpoint(cfg, folder)
        weights = _read_tested(path)
        if _other_class_names(cfg, weights.class_names):
            raise InputError(
                f"{path} was trained on classes of other names or order "
                f"({', '.join(weights.class_names[:3])}, ...) than DATA.CLASS_NAMES {cfg.DATA.CLASS_NAMES}; "
                "take the list of its training"
            )
        otherwise = check_testing(cfg, weights.info.get("cfg"), path)
        if otherwise and processes.is_main:
            log.warning("the test takes other clips than the training of %s: %s", path, otherwise)
        model = _network(cfg, processes.device)
        report = load_weights(model, weights, strict=True)
        _write_config(cfg, processes, folder)
        data = build.build_test_data(cfg, records)
    protocol = f"{data.protocol}, clips of {build.clip_text(cfg)}"
    epoch = weights.info.get("epoch")
    log.info("testing %s%s on %d videos, %s", report.source, _training_text(weights), len(records), protocol)

    if processes.device.type == "cpu":
        # The order of additions inside a convolution depends on the number of threads, so it must not depend
        # on the number of processes.
        torch.set_num_threads(processes.usable_cores)
    begin = time.perf_counter()
    checks = temporal_checks(cfg.RNG_SEED) if cfg.TEST.TEMPORAL_CHECKS else {}
    results = _evaluate(cfg, data, model, checks, processes, stop)
    if results is None:
        raise InterruptedRunError(stop.signal, "stopped while testing; nothing was written")
    _check_failures(results, records)
    with processes.together():
        if processes.is_main:
            summary = _summary(cfg, records, results, list(checks)) | {
                "protocol": protocol,
                "checkpoint": str(path),
                "epoch": epoch,
                "class_names": weights.class_names,
                "seconds": round(time.perf_counter() - begin, 1),
            }
            _write_results(cfg, folder, summary, records, results)
    _check_stop(processes, stop, f"stopped after testing, which is complete; its results are in {folder}")


def _check_stop(processes: Processes, stop: StopRequest, message: str) -> None:
    """Raises InterruptedRunError, on all processes, where one was asked to stop."""
    if processes.sum([int(bool(stop))])[0]:
        raise InterruptedRunError(stop.signal, message)


@contextmanager
def _started(cfg: Config) -> Iterator[tuple[Processes, Path]]:
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
            torch.set_num_threads(max(1, processes.usable_cores // processes.local_size))
        yield processes, folder


def _network(cfg: Config, device: torch.device) -> ResNet:
    """The network, not trained yet, in the layout that convolutions of clips are fastest in."""
    model = build.build_model(cfg)
    return model.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]


def _write_config(cfg: Config, processes: Processes, folder: Path) -> None:
    """The config as it was resolved; called when all is known to fit what stands in the folder."""
    if processes.is_main:
        with atomic_write(folder / "config.yaml") as file:
            file.write(cfg.dump())


def _records(cfg: Config, key: str, max_missing_share: float = 1.0) -> PackedRecords:
    """The records of a list; missing videos are counted and named, and too many of them end the run."""
    records = build.build_records(cfg, key)
    missing = missing_videos(records)
    if missing:
        names = ", ".join(record.path for record in missing[:3])
        message = f"{len(missing)} of the {len(records)} videos of {key} do not exist, first {names}"
        if len(missing) == len(records) or len(missing) > max_missing_share * len(records):
            raise InputError(
                f"{message}; correct DATA.PATH_TO_DATA_DIR, DATA.PATH_PREFIX or the list (DATA.MAX_BAD_SHARE "
                f"is {cfg.DATA.MAX_BAD_SHARE})"
            )
        log.warning("%s", message)
    return records


def _test_records(cfg: Config) -> Sequence[Record]:
    """The records to test; logs a warning where testing uses a smaller size than training."""
    if cfg.DATA.TEST_CROP_SIZE < cfg.DATA.TRAIN_CROP_SIZE:
        log.warning(
            "DATA.TEST_CROP_SIZE %d is smaller than DATA.TRAIN_CROP_SIZE %d; testing at the training size or "
            "above is more accurate",
            cfg.DATA.TEST_CROP_SIZE,
            cfg.DATA.TRAIN_CROP_SIZE,
        )
    return _records(cfg, "DATA.TEST_LIST")


def _check_batch_size(cfg: Config, num_records: int, num_processes: int) -> None:
    size, samples = cfg.TRAIN.BATCH_SIZE, cfg.AUG.NUM_SAMPLE
    if num_records < size // samples:
        raise InputError(
            f"TRAIN.BATCH_SIZE {size} is more than the {num_records} videos of {cfg.DATA.TRAIN_LIST}; make "
            "it smaller"
        )
    if size // samples % num_processes:
        raise InputError(
            f"TRAIN.BATCH_SIZE {size} does not divide among {num_processes} processes; take a multiple of "
            f"{num_processes * samples}"
        )


def _resume(
    cfg: Config, folder: Path, contents: dict[str, Any], model: ResNet, optimizer: torch.optim.Optimizer
) -> tuple[Position, str]:
    """Load the latest checkpoint of the folder, else the weights to start from; returns where to go on, and
    what has changed in the config since.
    """
    checkpoints = list_checkpoints(folder / "checkpoints")
    if checkpoints and not cfg.TRAIN.AUTO_RESUME:
        raise InputError(
            f"OUTPUT_DIR {folder} holds checkpoints of an earlier run; name another folder, or set "
            "TRAIN.AUTO_RESUME True to go on from them"
        )
    if checkpoints:
        state = _load_latest(checkpoints[-1])
        changes = check_going_on(cfg, state, contents, str(checkpoints[-1]))
        load_model_state(model, state, checkpoints[-1])
        load_momenta(optimizer, state["optimizer_state"])
        position = Position(state["epoch"] + 1, state["step"], state["sums"], state["history"])
        log.info(
            "going on from %s: %d epochs and %d steps are done",
            checkpoints[-1],
            position.epoch,
            position.step,
        )
        return position, changes
    if cfg.TRAIN.CHECKPOINT_FILE_PATH:
        path = path_manager.get_local_path(cfg.TRAIN.CHECKPOINT_FILE_PATH)
        report = load_weights(model, path, inflate=cfg.TRAIN.CHECKPOINT_INFLATE)
        log.info("starting from the weights of %s", cfg.TRAIN.CHECKPOINT_FILE_PATH)
        for line in str(report).splitlines():
            log.info("%s", line)
        if "fc.weight" in report.loaded and _other_class_names(cfg, report.class_names):
            log.warning(
                "the head keeps the weights of %s, whose classes have other names: %s, ...",
                path,
                ", ".join(report.class_names[:3]),
            )
    return Position(), ""


def _load_latest(path: Path) -> dict[str, Any]:
    """Raises WeightsError, which says how the run can go on, where the checkpoint cannot be used."""
    try:
        return load_checkpoint(path)
    except WeightsError as error:
        older = intact_before(path)
        remedy = (
            f"{older} is intact: move {path.name} away to go on from it"
            if older
            else "no older checkpoint is intact: name another OUTPUT_DIR to train anew"
        )
        raise WeightsError(f"{error}; {remedy}") from error


def _read_tested(path: str) -> Weights:
    """Raises WeightsError, which names an intact checkpoint beside a damaged one."""
    try:
        file = path_manager.get_local_path(path)
        weights = read_weights(file)
        if path.endswith(".pyth") and "step" in weights.info:  # a checkpoint of ours
            verify_checksums(file)
        return weights
    except WeightsError as error:
        older = intact_before(Path(path))
        if not older:
            raise
        raise WeightsError(f"{error}; {older} is intact: name it with TEST.CHECKPOINT_FILE_PATH") from error


def _training_text(weights: Weights) -> str:
    """How long weights of ours were trained; their `epoch` is the last whole one, from 0."""
    epoch, step = weights.info.get("epoch"), weights.info.get("step")
    if not isinstance(epoch, int) or not isinstance(step, int):
        return ""
    return f" after {epoch + 1} epochs" + (f" and {step} steps" if step else "")


def _other_class_names(cfg: Config, class_names: Sequence[str]) -> bool:
    """Whether weights name their classes otherwise than the config does; False where either names none."""
    ours = build.build_class_names(cfg)
    return bool(ours and class_names and list(ours.names) != list(class_names))


def _state(
    cfg: Config,
    contents: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
) -> dict[str, Any]:
    """A checkpoint in PySlowFast's form (`epoch` is the last whole one, from 0), with what an exact restart
    needs besides, and what the files that the config names held.
    """
    return {
        "epoch": position.epoch - 1,
        "model_state": model.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "cfg": cfg.dump(),
        "step": position.step,
        "sums": position.sums,
        "history": position.history,
        **contents,
        "protocol": f"trained on clips of {build.clip_text(cfg)} @{cfg.DATA.TRAIN_CROP_SIZE}",
    }


def _due(epoch: int, period: int, last: int) -> bool:
    return epoch == last or (epoch > 0 and epoch % period == 0)


def _evaluate(
    cfg: Config,
    data: ViewDataset,
    model: nn.Module,
    checks: dict[str, FrameOrder],
    processes: Processes,
    stop: StopRequest,
) -> list[VideoResult] | None:
    with view_loader(
        data,
        videos_at_once=max(1, cfg.TEST.BATCH_SIZE // (data.num_clips * data.num_crops)),
        rank=processes.rank,
        world_size=processes.size,
        num_workers=cfg.DATA_LOADER.NUM_WORKERS,
        pin_memory=processes.device.type == "cuda",
        timeout=cfg.DATA_LOADER.TIMEOUT,
    ) as loader:
        return evaluate(
            model,
            loader,
            crop_size=data.crop_size,
            batch_size=cfg.TEST.BATCH_SIZE,
            to_network=build.build_to_network(cfg, processes.device),
            checks=checks,
            processes=processes,
            stop=stop,
        )


def _validate(cfg: Config, trainer: Trainer, model: nn.Module, data: ViewDataset, position: Position) -> bool:
    """Add the accuracy at the centre of each video to the history; False after a request to stop."""
    begin = time.perf_counter()
    results = _evaluate(cfg, data, model, {}, trainer.processes, trainer.stop)
    if results is None:
        return False
    _check_failures(results, data.records)
    top1, top5, *_ = accuracy([result.by_views.get("1x1") for result in results], data.records)
    position.history.append({"epoch": position.epoch, "top1": top1, "top5": top5})
    best1, best5 = (max(past[key] for past in position.history) for key in ("top1", "top5"))
    if trainer.stats:
        line = epoch_line(
            "val_epoch",
            position.epoch - 1,
            trainer.num_epochs,
            time.perf_counter() - begin,
            trainer.processes.device,
        )
        line |= {
            "top1_err": 100 - top1,
            "top5_err": 100 - top5,
            "min_top1_err": 100 - best1,
            "min_top5_err": 100 - best5,
        }
        trainer.stats.write(line, position.epoch * trainer.steps_per_epoch)
    failed = sum(bool(result.error) for result in results)
    log.info(
        "epoch %d: validation top-1 %.2f, top-5 %.2f (best top-1 %.2f), %s, %d videos, %d failed",
        position.epoch, top1, top5, best1, data.protocol, len(results), failed,
    )  # fmt: skip
    return True


def _log_epoch(trainer: Trainer, epoch: int, result: EpochResult) -> None:
    values = train_stats(result.sums)
    log.info(
        "epoch %d/%d: loss %.4f, top-1 error %.2f, %s, %.0f%% of it waiting for data",
        epoch + 1, trainer.num_epochs, values["loss"], values["top1_err"], hours(result.seconds),
        100 * result.waiting_share,
    )  # fmt: skip
    if trainer.stats:
        line = epoch_line("train_epoch", epoch, trainer.num_epochs, result.seconds, trainer.processes.device)
        trainer.stats.write(
            line | values | {"waiting_share": result.waiting_share}, (epoch + 1) * trainer.steps_per_epoch
        )


def _test_checkpoint(cfg: Config, folder: Path) -> str:
    latest = [str(path) for path in list_checkpoints(folder / "checkpoints")[-1:]]
    for path in [cfg.TEST.CHECKPOINT_FILE_PATH, *latest, cfg.TRAIN.CHECKPOINT_FILE_PATH]:
        if path:
            return str(path)
    raise InputError(
        f"no weights to test: {folder}/checkpoints holds none; name a checkpoint with "
        "TEST.CHECKPOINT_FILE_PATH, or train first"
    )


def _check_failures(results: Sequence[VideoResult], records: Sequence[Record]) -> None:
    failed = [result for result in results if result.error]
    for result in failed:
        log.warning("%s: %s; it counts as failed", records[result.record].path, result.error)
    if len(failed) == len(records):
        raise InputError(
            f"none of the {len(records)} videos can be classified; the first is {records[0].path} "
            f"({failed[0].error})"
        )


def _summary(
    cfg: Config, records: Sequence[Record], results: Sequence[VideoResult], checks: Sequence[str]
) -> dict[str, Any]:
    """The accuracies in percent: over all videos (failed ones are wrong) and over the others, by views
    and by temporal check.
    """
    names = list(view_subsets(cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS))
    by_views = {name: accuracy([result.by_views.get(name) for result in results], records) for name in names}
    full = by_views[names[-1]]
    return {
        "top1_acc": full.top1,
        "top5_acc": full.top5,
        "top1_acc_readable": full.top1_readable,
        "top5_acc_readable": full.top5_readable,
        "num_videos": len(records),
        "num_failed": sum(bool(result.error) for result in results),
        "num_classes": cfg.MODEL.NUM_CLASSES,
        "by_views": {name: _percent(value) for name, value in by_views.items()},
        "temporal_checks": {
            name: _percent(accuracy([result.by_check.get(name) for result in results], records))
            for name in checks
        },
    }


def _percent(value: Accuracy) -> dict[str, float]:
    return {"top1_acc": value.top1, "top5_acc": value.top5}


def _write_results(
    cfg: Config,
    folder: Path,
    summary: dict[str, Any],
    records: Sequence[Record],
    results: Sequence[VideoResult],
) -> None:
    """results.json, predictions.csv, a line in json_stats.log, and the table in the log."""
    with atomic_write(folder / "results.json") as file:
        simplejson.dump(summary, file, indent=2)
        file.write("\n")
    _write_predictions(folder / "predictions.csv", cfg, records, results)
    accuracies = {key: summary[key] for key in ("top1_acc", "top5_acc")}
    Stats(folder).write({"_type": "test_final", "split": "test_final", **accuracies}, 0)
    for line in _table(summary).splitlines():
        log.info("%s", line)
    log.info(
        "results: %s; one line a video: %s; curves: tensorboard --logdir %s",
        folder / "results.json",
        folder / "predictions.csv",
        folder,
    )


def _write_predictions(
    path: Path, cfg: Config, records: Sequence[Record], results: Sequence[VideoResult]
) -> None:
    """video, label, the classes and probabilities of the top five, and why a video failed."""
    ranks = range(1, min(TOP, cfg.MODEL.NUM_CLASSES) + 1)
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["video", "label", *(f"top{rank}" for rank in ranks), *(f"prob{rank}" for rank in ranks), "error"]
        )
        for record, result in zip(records, results, strict=True):
            cells: list[Any] = [""] * (2 * len(ranks))
            if not result.error:
                *_, full = result.by_views.values()
                cells = [*full.classes, *(f"{probability:.6f}" for probability in full.probabilities)]
            writer.writerow([record.name, record.label, *cells, result.error])


def _table(summary: dict[str, Any]) -> str:
    rows = [
        (f"{name} views", value["top1_acc"], value["top5_acc"]) for name, value in summary["by_views"].items()
    ]
    rows += [
        (f"frames {name}", value["top1_acc"], value["top5_acc"])
        for name, value in summary["temporal_checks"].items()
    ]
    if summary["num_failed"]:
        rows.append(("without failed videos", summary["top1_acc_readable"], summary["top5_acc_readable"]))
    top = f"top-{min(TOP, summary['num_classes'])}"
    chance = 100 / summary["num_classes"]
    head = f"{summary['num_videos']} videos, {summary['num_failed']} failed; chance {chance:.2f}"
    return f"{head}\n" + tabulate(rows, headers=["accuracy in percent", "top-1", top], floatfmt=".2f")
