"""Training and testing, from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from . import build
from .changes import check_testing
from .config import Config
from .data.dataset import ClipDataset, ViewDataset
from .data.loader import ClipBatch, EpochBatches, clip_loader, view_loader
from .data.records import Record
from .engine.aggregate import Prediction, results
from .engine.checkpoint import (
    BEST,
    Position,
    read_position,
    read_tested,
)
from .engine.evaluate import FrameOrder, evaluate, temporal_checks
from .engine.journal import Journal
from .engine.precision import Precision
from .engine.step import Step
from .engine.tasks import Task
from .engine.train import NONFINITE, Agreement, BadSteps, BadVideos, readable, train_epoch
from .engine.views import VideoOutputs, ViewStore
from .folder import Run, opened
from .models import load_weights
from .report.contact_sheet import batch_sheet, noting_first, png
from .report.page import write_page
from .report.results import metrics, table, write_predictions, write_results
from .report.strips import strips_of
from .runtime.cores import usable_cores
from .runtime.errors import InputError
from .runtime.logging import log
from .runtime.seeding import Stream, integer_seed
from .runtime.signals import StopRequest
from .runtime.storage import atomic_write


def run(cfg: Config, stop: StopRequest, notes: Sequence[str] = ()) -> None:
    """Train if TRAIN.ENABLE, then test if TEST.ENABLE. OUTPUT_DIR is locked meanwhile. `notes`: lines to log
    about the config.

    Raises InputError for mistakes that a user can correct, InterruptedRunError after a request to stop.
    """
    with opened(cfg, stop) as this:
        build.check_libraries(cfg)
        for note in notes:
            log.info("%s", note)
        if cfg.TRAIN.ENABLE:
            train(this)
        if cfg.TEST.ENABLE:
            test(this)


def train(run: Run) -> None:
    """Train, validate and save checkpoints, resuming from those in OUTPUT_DIR."""
    cfg, processes = run.cfg, run.processes
    records = run.records("DATA.TRAIN_LIST", cfg.DATA.MAX_BAD_FRACTION)
    validated = run.records("DATA.VAL_LIST")
    if cfg.TEST.ENABLE:
        run.records("DATA.TEST_LIST")  # so that its mistakes show before the training
    with processes.together():
        validation = build.build_validation_data(cfg, validated)
        batches = build.build_batches(cfg, len(records), processes.rank, processes.size)
        torch.manual_seed(integer_seed(cfg.RNG_SEED, Stream.WEIGHTS))
        network = build.build_network(cfg, processes.device)
    build.check_precision(cfg, network, processes)
    step = build.build_step(cfg, network, processes)
    train_list = processes.from_main(records.fingerprint)
    with processes.together():
        changes = run.resume(step, train_list)
    position = run.position
    if run.is_complete():
        log.info(
            "training was complete after %d epochs; to train again, name another OUTPUT_DIR%s",
            position.epoch,
            f" (without effect: {changes})" if changes else "",
        )
        run.end_if_asked("stopped; the training was complete before")
        return
    if position.step >= batches.steps(position.epoch):
        raise InputError(
            f"the checkpoint in {run.folder} is after step {position.step} of an epoch, but an epoch now has "
            f"{batches.steps(position.epoch)} steps; restore TRAIN.BATCH_SIZE and the list, or name another "
            "OUTPUT_DIR"
        )
    batches.start = position.epoch, position.step
    if changes:
        log.info("changed from here on: %s", changes)
    with processes.together():
        run.write_config()
        run.write_stamp()
    journal = run.journal(batches)
    agreement = Agreement(
        processes,
        run.stop,
        BadVideos(records, cfg.DATA.MAX_BAD_FRACTION),
        BadSteps(
            lambda epoch, step: [records[i].path for i in batches.records_of(epoch, step)],
            run.folder / NONFINITE if processes.is_main else None,
            cfg.SOLVER.SKIP_NONFINITE_STEPS,
        ),
        run.is_late,
    )
    length, *phases = build.schedule_text(cfg, batches, processes.size).splitlines()
    log.info(
        "training %s-%d (%.2fM parameters) on %d videos: %s; %d process(es), %s",
        cfg.MODEL.ARCH, cfg.RESNET.DEPTH, sum(p.numel() for p in network.parameters()) / 1e6, len(records),
        length, processes.size, processes.device,
    )  # fmt: skip
    for line in [*phases, *build.step_texts(cfg, processes.size)]:
        log.info("%s", line)
    data = build.build_training_data(cfg, records)
    with clip_loader(data, batches, **build.loading(cfg, processes.device)) as loader:
        clips = iter(loader)
        if processes.is_main and position == Position():
            clips = noting_first(clips, lambda batch: show_batch(run, journal, batch))
        while True:
            if run.due(cfg.TRAIN.EVAL_PERIOD) and not position.validated():
                if cfg.BN.USE_PRECISE_STATS:
                    estimate_statistics(run, step, data, batches)
                validate(run, step, validation, journal)
                if position.is_best():
                    run.save(step, BEST)
                if run.due(cfg.TRAIN.CHECKPOINT_PERIOD):
                    run.save(step)
            if position.epoch == run.num_epochs:
                break
            build.set_batch_norm(cfg, step.networks(), processes, position.epoch)
            if not train_epoch(step, clips, position, agreement, journal, lambda: run.save(step)):
                steps = batches.steps(position.epoch)
                where = f"epoch {position.epoch + 1} after step {position.step} of {steps}"
                raise run.interrupted(f"stopped in {where}; saved {run.save(step)}")
            if run.due(cfg.TRAIN.CHECKPOINT_PERIOD):
                run.save(step)
    log.info("training is complete: %d epochs, last checkpoint in %s", position.epoch, run.checkpoints)
    run.end_if_asked(f"stopped after training, which is complete; saved in {run.checkpoints}")


def show_batch(run: Run, journal: Journal, batch: ClipBatch) -> None:
    """Write clips of a batch, as loaded, to first_batch.png, and show them in TensorBoard."""
    picture = batch_sheet(batch, run.contents["class_names"])
    data = png(picture)
    if journal.stats:
        journal.stats.image("first_batch", data, picture.size, 0)
    try:
        with atomic_write(run.folder / "first_batch.png", "wb") as file:
            file.write(data)
    except InputError as error:
        log.warning("%s", error)


def estimate_statistics(run: Run, step: Step, data: ClipDataset, batches: EpochBatches) -> None:
    """Replace the running statistics of batch normalization by precise ones, from the first training samples
    of the coming epoch, in batches of the last one.
    """
    cfg, last = run.cfg, run.position.epoch - 1
    build.set_batch_norm(cfg, step.networks(), run.processes, last)
    ahead = batches.after(last)
    number = min(cfg.BN.NUM_BATCHES_PRECISE, ahead.steps(last + 1))
    loading = build.loading(cfg, run.processes.device)
    with clip_loader(data, ahead, **loading) as loader:
        step.estimate_statistics(readable(iter(loader), run.processes), number)


def validate(run: Run, step: Step, data: ViewDataset, journal: Journal) -> None:
    """Append the accuracies on the centre view of each video to the history. Raises InterruptedRunError after
    a request to stop.
    """
    begin = time.perf_counter()
    found: list[tuple[int, Prediction | None, str]] = []

    def classify(videos: list[VideoOutputs]) -> None:
        for record, outputs, error in videos:
            found.append((record, None if error else step.task.predict(outputs[""]), error))

    if not _evaluate(run, data, step.tested, step.task, step.precision, classify, {}, ()):
        raise run.interrupted(f"stopped while validating epoch {run.position.epoch}; saved {run.save(step)}")
    everywhere = sorted(video for some in run.processes.gather(found) for video in some)
    errors = [error for *_, error in everywhere]
    _check_failures(errors, data.records)
    accuracies = step.task.measure(
        [prediction for _, prediction, _ in everywhere], [record.label for record in data.records]
    )
    run.position.history.append({"epoch": run.position.epoch, **accuracies})
    videos = f"{data.protocol}, {len(errors)} videos, {sum(map(bool, errors))} failed"
    journal.validation(run.position, time.perf_counter() - begin, videos, step.task.record)


def test(run: Run) -> None:
    """Test with several views per video, continuing an interrupted test. Views are stored; results.json and
    predictions.csv are computed from them.
    """
    cfg, processes = run.cfg, run.processes
    records = run.records("DATA.TEST_LIST")
    with processes.together():
        path = run.tested_checkpoint()
        weights = read_tested(path, cfg.TEST.EMA)
        if run.other_class_names(weights.class_names):
            raise InputError(
                f"{path} was trained on classes with other names or in another order "
                f"({', '.join(weights.class_names[:3])}, ...) than DATA.CLASS_NAMES {cfg.DATA.CLASS_NAMES}; "
                "use the class names of its training"
            )
        otherwise = check_testing(cfg, weights.info.get("cfg"), path)
        if otherwise and processes.is_main:
            log.warning("testing uses other clips than the training of %s: %s", path, otherwise)
        model = build.build_network(cfg, processes.device)
        report = load_weights(model, weights, strict=True)
        data = build.build_test_data(cfg, records)
        checks = temporal_checks(cfg.RNG_SEED) if cfg.TEST.TEMPORAL_CHECKS else {}
    if processes.device.type == "cpu":
        # Sums in a convolution depend on the number of threads, which must not depend on that of processes.
        torch.set_num_threads(usable_cores())
    tested = build.build_tested(cfg, model, processes)
    with processes.together():
        run.write_config()
        run.write_stamp()
    store = run.view_store(model, data, records, list(checks), weights.class_names, tested.arithmetic())
    with processes.together():
        if processes.is_main:
            store.forget_failed(build.videos_at_once(cfg, data))
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
            "%d of %d videos were tested before; to test them again, remove %s",
            len(done),
            len(records),
            store.folder,
        )
    begin = time.perf_counter()
    task = build.build_task(cfg, processes.device)
    writer = store.writer(processes.rank, records)
    finished = _evaluate(run, data, tested.network, task, tested.precision, writer.add, checks, set(done))
    with processes.together():
        writer.flush()
    if not finished:
        raise run.interrupted(f"stopped while testing; the views so far are in {store.folder}")
    with processes.together():
        if processes.is_main:
            _write_test(
                run,
                store,
                data,
                {
                    "checkpoint": str(path),
                    "epoch": weights.info.get("epoch"),
                    "class_names": weights.class_names,
                    "seconds": round(time.perf_counter() - begin, 1),
                },
            )
    run.end_if_asked(f"stopped after testing, which is complete; its results are in {run.folder}")


def _evaluate(
    run: Run,
    data: ViewDataset,
    model: nn.Module,
    task: Task,
    precision: Precision,
    sink: Callable[[list[VideoOutputs]], None],
    checks: Mapping[str, FrameOrder],
    done: Collection[int],
) -> bool:
    """Evaluate all videos except those in `done`; see evaluate."""
    cfg = run.cfg
    with view_loader(
        data,
        videos_at_once=build.videos_at_once(cfg, data),
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
            precision=precision,
            crop_size=data.crop_size,
            batch_size=cfg.TEST.BATCH_SIZE,
            checks=checks,
            processes=run.processes,
            stop=run.stop,
        )


def _check_failures(errors: Sequence[str], records: Sequence[Record]) -> None:
    """Log which videos failed. Raises InputError if all did."""
    for error, record in zip(errors, records, strict=True):
        if error:
            log.warning("%s: %s; counted as failed", record.path, error)
    if all(errors):
        raise InputError(
            f"none of the {len(records)} videos can be classified; the first is {records[0].path} "
            f"({errors[0]})"
        )


def _write_test(run: Run, store: ViewStore, data: ViewDataset, more: dict[str, Any]) -> None:
    """Write results.json, predictions.csv, a record in json_stats.log and the page; log the table."""
    numbers, outcome = results([store])
    _check_failures(outcome.errors, data.records)
    is_kept = run.cfg.TEST.STORED_VIEWS != "off"
    numbers |= more | {"views": str(store.folder.relative_to(run.folder)) if is_kept else ""}
    numbers["stamp"] = run.stamp_of_results(store)
    *_, protocol = numbers["by_views"]
    write_predictions(run.folder / "predictions.csv", outcome, outcome.predictions[protocol])
    write_results(run.folder / "results.json", numbers)
    if not is_kept:
        store.remove()
    accuracies = {key: numbers[key] for key in metrics(numbers)}
    run.stats().write({"_type": "test_final", "split": "test_final", **accuracies}, 0)
    for line in table(numbers).splitlines():
        log.info("%s", line)
    log.info(
        "results: %s; predictions: %s; curves: tensorboard --logdir %s",
        run.folder / "results.json",
        run.folder / "predictions.csv",
        run.folder,
    )
    try:
        log.info("page: %s", write_page(run.folder, strips_of(data)))
    except InputError as error:
        log.warning("%s", error)
