"""Look at a run before it starts: config, lists, files, network, speed. Nothing is left behind but a picture
in the folder of temporary files.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator

import torch

from . import build
from .config import Config, changed_yaml, check_files, needed_files
from .data.labels import classes_of
from .data.loader import collate_clips
from .data.packed import PackedRecords
from .engine.complexity import Complexity, complexity
from .engine.journal import hours
from .models import ResNet
from .report.contact_sheet import batch_sheet, png
from .runtime.devices import peak_memory, prepare
from .runtime.distributed import Processes
from .runtime.errors import InputError
from .speed import whole

CLIPS = 8  # in the picture of the first batch
FILES = 8  # of each list, whose clips are decoded
STEPS = 3  # of training
VIDEOS = 64  # in a test
# On a CPU, where a whole batch may take minutes, a step or test has as many clips as this number of
# multiply-adds allows (forward passes, some seconds), and a step no fewer than CPU_CLIPS.
CPU_WORK, CPU_CLIPS = 5e10, 4


def check(cfg: Config) -> Iterator[str]:
    """Yield lines on what a run would be: its config, lists, files, network, speed and duration.

    Trains a few steps and tests a few videos, on one process with its share of the batch. Raises InputError
    for what would end the run.
    """
    yield changed_yaml(cfg).rstrip()
    check_files(cfg)
    build.check_libraries(cfg)
    # As in a run, only the training list is limited in what may be missing.
    limits = {"DATA.TRAIN_LIST": cfg.DATA.MAX_BAD_FRACTION}
    keys = [key for key in needed_files(cfg) if key.endswith("_LIST")]
    lists = {key: build.build_records(cfg, key, limits.get(key, 1.0)) for key in keys}
    for key, records in lists.items():
        yield from _list_lines(cfg, key, records)
    processes = Processes(use_gpu=cfg.NUM_GPUS > 0)
    prepare(processes.device, cfg.ALLOW_TF32, processes.local_size)
    network = build.build_network(cfg, processes.device)
    cost = _cost(cfg)
    yield _network_line(cfg, cost)
    clips = int(CPU_WORK / cost.multiply_adds)
    if cfg.TRAIN.ENABLE:
        yield from _training_lines(cfg, network, lists, processes, max(CPU_CLIPS, clips))
    if cfg.TEST.ENABLE:
        views = cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS
        number = min(VIDEOS, max(1, clips // views)) if processes.device.type == "cpu" else VIDEOS
        seconds = 1 / whole.testing(cfg, lists["DATA.TEST_LIST"][:number], processes)
        total = seconds * len(lists["DATA.TEST_LIST"]) / max(1, cfg.NUM_GPUS)
        protocol = f"{cfg.TEST.NUM_ENSEMBLE_VIEWS}x{cfg.TEST.NUM_SPATIAL_CROPS}"
        yield f"testing: {seconds:.3f} s for a video with {protocol} views, {hours(total)} for all"


def _list_lines(cfg: Config, key: str, records: PackedRecords) -> Iterator[str]:
    """Yield what a list holds, and which of a sample of its files cannot be read."""
    labels = Counter(number for record in records for number in classes_of(record.label))
    fewest, most = min(labels.values()), max(labels.values())
    yield (
        f"{key}: {len(records)} videos of {len(labels)} of {cfg.MODEL.NUM_CLASSES} classes, {fewest} to "
        f"{most} in each"
    )
    data = build.build_validation_data(cfg, records)
    chosen = range(0, len(records), max(1, len(records) // FILES))[:FILES]
    bad = [(records[i], views.error) for i in chosen if (views := data[i]).error]
    for record, error in bad:
        yield f"  {record.path}: {error}"
    yield f"  {len(chosen) - len(bad)} of {len(chosen)} files tried can be read"


def _size(cfg: Config) -> tuple[int, int, int]:
    return cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE


def _cost(cfg: Config) -> Complexity:
    """Return the cost of a training clip."""
    with torch.device("meta"):
        return complexity(build.build_model(cfg), _size(cfg))


def _network_line(cfg: Config, cost: Complexity) -> str:
    return (
        f"{cfg.MODEL.ARCH}-{cfg.RESNET.DEPTH}: {cost.parameters / 1e6:.2f} M parameters, "
        f"{cost.multiply_adds / 1e9:.2f} GMACs for a clip of {'x'.join(map(str, _size(cfg)))}"
    )


def _training_lines(
    cfg: Config,
    network: ResNet,
    lists: dict[str, PackedRecords],
    processes: Processes,
    cpu_clips: int,
) -> Iterator[str]:
    """Yield the speed of a few steps, and how long an epoch and the run would take. `cpu_clips`: at most in a
    step on a CPU.
    """
    num_processes = max(1, cfg.NUM_GPUS)
    records = lists["DATA.TRAIN_LIST"]
    batches = build.build_batches(cfg, len(records), 0, num_processes)
    share = build.without_multigrid(cfg)
    share.TRAIN.BATCH_SIZE //= num_processes
    if processes.device.type == "cpu":
        share.TRAIN.ACCUMULATION = 1
        share.TRAIN.BATCH_SIZE = min(share.TRAIN.BATCH_SIZE, cpu_clips * cfg.AUG.NUM_SAMPLE)
    yield f"the first clips of the first batch: {_first_clips(cfg, records)}"
    build.check_precision(cfg, network, processes)
    step = build.build_step(share, network, processes)
    found = whole.training(share, records, step, STEPS, processes)
    # A step of multigrid training has as many pixels, whatever its size.
    num_epochs = build.build_phases(cfg)[-1].end_epoch
    total = batches.steps_before(num_epochs) * cfg.TRAIN.BATCH_SIZE / (found.both * num_processes)
    gigabytes = f", {peak_memory(step.device) / 2**30:.2f} GiB" if step.device.type == "cuda" else ""
    yield (
        f"training: {found.both:.1f} clips/s a process with {share.TRAIN.BATCH_SIZE} clips at a time"
        f"{gigabytes} (the step alone {found.step:.1f}, loading alone {found.loading:.1f} with "
        f"{cfg.DATA_LOADER.NUM_WORKERS} workers)"
    )
    yield (
        f"{hours(total / num_epochs)} an epoch, {hours(total)} for {num_epochs} epochs "
        f"on {num_processes} process(es), without validation"
    )


def _first_clips(cfg: Config, records: PackedRecords) -> str:
    """Write a contact sheet of the first training clips; returns its path."""
    data = build.build_training_data(cfg, records)
    keys = next(iter(build.build_batches(cfg, len(records))))
    batch = collate_clips([data[key] for key in keys[:CLIPS]])
    if not batch.clips.numel():
        raise InputError(f"{records[batch.failures[0].record].path}: {batch.failures[0].reason}")
    classes = build.build_class_names(cfg)
    picture = batch_sheet(batch, classes.names if classes else [])
    with tempfile.NamedTemporaryFile(prefix="first_batch_", suffix=".png", delete=False) as file:
        file.write(png(picture))
    return file.name
