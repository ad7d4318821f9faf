"""Build objects from a config: the only module that maps keys to constructors."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import Tensor
from torch.optim import Optimizer

from .config import Config, needed_files
from .data.dataset import ClipDataset, ViewDataset
from .data.decode import OpenVideo, PacketIndex, load_backend, open_video
from .data.directions import directions
from .data.frame_rates import with_frame_rates
from .data.functional import half_even, half_up, normalize
from .data.labels import classes_of
from .data.loader import BatchShape, EpochBatches
from .data.mixing import Mixer, Targets, many_targets, plain_targets, smooth_targets
from .data.packed import PackedRecords
from .data.records import (
    ClassNames,
    Record,
    missing_videos,
    read_class_names,
    read_frame_list,
    read_json_classes,
    read_json_labels,
    read_records,
    read_tsm_list,
)
from .data.sampling import DenseSampler, Sampler, SegmentSampler, SlowFastSampler
from .data.transforms import (
    Compose,
    Crop,
    OnAllFrames,
    PaddedCrop,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    ShortSideJitter,
    Transform,
)
from .engine import multigrid, optim, schedule
from .engine.average import Average
from .engine.average_precision import load_average_precision
from .engine.compiled import compiled
from .engine.multigrid import Normalization, Phase
from .engine.precision import Precision, check
from .engine.step import Step
from .engine.tasks import ManyLabels, SingleLabel
from .models import ResNet, create_cifar_model, create_model, fold_batch_norm, set_norm
from .runtime.distributed import Processes
from .runtime.errors import InputError, reason
from .runtime.logging import log
from .runtime.ranges import join
from .runtime.shards import list_root


def build_model(cfg: Config) -> ResNet:
    resnet = cfg.RESNET
    common = {
        "dims": cfg.MODEL.DIMS,
        "num_classes": cfg.MODEL.NUM_CLASSES,
        "width": resnet.WIDTH_PER_GROUP,
        "dropout": cfg.MODEL.DROPOUT_RATE,
        "rectify_identity": resnet.RECTIFY_IDENTITY,
        "zero_init_residual": resnet.ZERO_INIT_RESIDUAL,
        "checkpoint_activations": cfg.MODEL.ACT_CHECKPOINT,
    }
    temporal = {
        "temporal_kernels": resnet.TEMPORAL_KERNELS,
        "temporal_strides": resnet.TEMPORAL_STRIDES or None,
        "temporal_pool": resnet.TEMPORAL_POOL or None,
        "stem_temporal_kernel": resnet.STEM_TEMPORAL_KERNEL or None,
        "stem_temporal_stride": resnet.STEM_TEMPORAL_STRIDE,
        "stem_pool": resnet.STEM_POOL,
        "shortcut_temporal_kernel": resnet.SHORTCUT_TEMPORAL_KERNEL or None,
    }
    try:
        if resnet.STAGES == 3:
            net = create_cifar_model(cfg.MODEL.ARCH, resnet.DEPTH, **common)
        else:
            net = create_model(cfg.MODEL.ARCH, resnet.DEPTH, **common, **temporal)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"this network cannot be built (MODEL, RESNET): {reason(error)}") from error
    if cfg.MODEL.HEAD_PER_POSITION:
        size = cfg.DATA.TRAIN_CROP_SIZE
        net.plan = net.plan.trained_on((cfg.DATA.NUM_FRAMES, size, size))
    return net


def channels_last(cfg: Config) -> torch.memory_format:
    """Return the layout of the network's kernels, in which convolutions are fast."""
    return torch.channels_last if cfg.MODEL.DIMS == 2 else torch.channels_last_3d


def build_network(cfg: Config, device: torch.device) -> ResNet:
    """Return the untrained network on the device, in channels-last layout."""
    model = build_model(cfg)
    return model.to(device, memory_format=channels_last(cfg))  # type: ignore[call-overload,no-any-return]


def micro_batch(cfg: Config, shape: BatchShape, num_processes: int) -> int:
    """Return the number of clips of a batch that pass through the network at a time in training."""
    return int(shape.batch_size // (num_processes * cfg.TRAIN.ACCUMULATION))


def build_norm(cfg: Config, epoch: int, num_processes: int) -> Normalization:
    """Return the batch normalization of an epoch. Raises InputError if the parts do not divide a batch, or
    the groups the processes.
    """
    shape = multigrid.phase_of(build_phases(cfg), epoch).shapes[-1]
    clips = micro_batch(cfg, shape, num_processes)
    if cfg.MULTIGRID.LONG_CYCLE:
        return multigrid.normalization(clips, num_processes, cfg.MULTIGRID.BN_BASE_SIZE)
    kind, splits = cfg.BN.NORM_TYPE, cfg.BN.NUM_SPLITS
    devices = cfg.BN.NUM_SYNC_DEVICES or num_processes
    if kind == "sub_batchnorm" and clips % splits:
        raise InputError(
            f"BN.NUM_SPLITS {splits} does not divide the {clips} clips that pass at a time (TRAIN.BATCH_SIZE "
            f"{cfg.TRAIN.BATCH_SIZE} on {num_processes} processes); take a number that does"
        )
    if kind == "sync_batchnorm" and num_processes % devices:
        raise InputError(
            f"BN.NUM_SYNC_DEVICES {devices} does not divide the {num_processes} processes; take a number "
            "that does, or 0 for all"
        )
    return Normalization(kind, splits, devices)


def set_batch_norm(cfg: Config, networks: Iterable[ResNet], processes: Processes, epoch: int) -> None:
    """Set the normalizations of networks to those of an epoch, on all processes alike; see build_norm."""
    norm = build_norm(cfg, epoch, processes.size)
    group = processes.group(norm.devices) if norm.kind == "sync_batchnorm" else None
    for network in networks:
        set_norm(network, norm.kind, splits=norm.splits, group=group)


def build_step(cfg: Config, network: ResNet, processes: Processes) -> Step:
    train, solver = cfg.TRAIN, cfg.SOLVER
    frozen = optim.freeze(network, cfg.MODEL.FROZEN_STAGES, cfg.MODEL.FROZEN_BN)
    average = Average(network, solver.EMA_DECAY) if solver.EMA_DECAY else None
    if train.COMPILE:
        _compile(cfg, network, processes.size)
    step = Step(
        network,
        build_optimizer(cfg, network),
        build_schedule(cfg),
        build_task(cfg, processes.device),
        seed=cfg.RNG_SEED,
        processes=processes,
        precision=build_precision(cfg, processes.device),
        limits=optim.Limits(solver.CLIP_GRAD_VAL, solver.CLIP_GRAD_L2NORM),
        accumulation=train.ACCUMULATION,
        average=average,
        frozen=frozen,
        keep_statistics=solver.SKIP_NONFINITE_STEPS > 0,
        bf16_allreduce=train.BF16_ALLREDUCE,
        static_graph=not train.COMPILE,
    )
    # Last, because DistributedDataParallel takes no synchronized normalization on the CPU.
    set_batch_norm(cfg, step.networks(), processes, epoch=0)
    return step


def _compile(cfg: Config, network: ResNet, num_processes: int) -> None:
    """Compile a network; with multigrid, once for each size and normalization of its batches."""
    phases = build_phases(cfg)
    norms = [build_norm(cfg, phase.first_epoch, num_processes) for phase in phases]
    kinds = {(shape, norm) for phase, norm in zip(phases, norms, strict=True) for shape in phase.shapes}
    if len(kinds) == 1:
        network.compile()
        return
    # Above its limit, torch.compile runs what it has not compiled as it is, which is slow. Normalization over
    # processes divides a network into several functions; validation and precise statistics are more of them.
    torch._dynamo.config.recompile_limit = 4 * len(kinds)
    network.compile(dynamic=False)


def build_task(cfg: Config, device: torch.device) -> SingleLabel | ManyLabels:
    """Return the task: targets, loss and accuracies."""
    task = ManyLabels if cfg.DATA.MULTI_LABEL else SingleLabel
    return task(build_normalize(cfg, device), build_targets(cfg))


def build_probabilities(cfg: Config) -> Callable[[Tensor], Tensor]:
    """Return the function that makes probabilities of (..., K) logits."""
    return torch.sigmoid if cfg.DATA.MULTI_LABEL else functools.partial(torch.softmax, dim=-1)


def check_libraries(cfg: Config) -> None:
    """Raise InputError if a package is missing that a run needs at its end."""
    if cfg.DATA.MULTI_LABEL:
        load_average_precision()


def build_precision(cfg: Config, device: torch.device, *, training: bool = True) -> Precision:
    """Return the precision of training and validation, or else of testing."""
    mixed = cfg.TRAIN.MIXED_PRECISION if training else cfg.TEST.MIXED_PRECISION
    return Precision(device.type, getattr(torch, cfg.TRAIN.HALF_DTYPE) if mixed else None)


def check_precision(
    cfg: Config, network: torch.nn.Module, processes: Processes, *, training: bool = True
) -> list[str]:
    """Compare the network's convolutions in the precision of training or testing with float32, for batches of
    every size. Returns the names of those that compute in float32 from now on; see engine's check.
    """
    shapes = [BatchShape(cfg.TEST.BATCH_SIZE, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE)]
    if training:
        shapes = [
            shape._replace(batch_size=micro_batch(cfg, shape, processes.size))
            for phase in build_phases(cfg)
            for shape in phase.shapes
        ]
    # On the CPU, more than one clip would take minutes.
    sizes = {
        (1 if processes.device.type == "cpu" else clips, 3, frames, crop, crop)
        for clips, frames, crop, _ in shapes
    }
    found: list[str] = []
    for size in sorted(sizes):
        found += check(
            network,
            build_precision(cfg, processes.device, training=training),
            size,
            processes=processes,
            training=training,
            keep_float32=cfg.TRAIN.HALF_PROBLEMS == "float32",
        )
    return sorted(set(found), key=found.index)


class Tested(NamedTuple):
    """What computes the logits of a test. `float32_layers`: those that half precision leaves out."""

    network: torch.nn.Module
    precision: Precision
    float32_layers: list[str]

    def arithmetic(self) -> dict[str, Any]:
        """Return what digits of the logits depend on besides the keys in changes.TESTED."""
        return {"half": str(self.precision.dtype), "float32_layers": self.float32_layers}


def build_tested(cfg: Config, trained: ResNet, processes: Processes) -> Tested:
    """Return a trained network ready to test: folded, checked in half precision and compiled, by key."""
    network: torch.nn.Module = fold_batch_norm(trained) if cfg.TEST.FOLD_BN else trained
    precision = build_precision(cfg, processes.device, training=False)
    float32_layers = check_precision(cfg, network, processes, training=False)
    if cfg.TEST.COMPILE:
        size = cfg.TEST.BATCH_SIZE, 3, cfg.DATA.NUM_FRAMES, *[cfg.DATA.TEST_CROP_SIZE] * 2
        network = compiled(network, size, precision, processes.device)
    return Tested(network, precision, float32_layers)


def build_optimizer(cfg: Config, network: ResNet) -> Optimizer:
    solver = cfg.SOLVER
    groups = optim.parameter_groups(
        network,
        weight_decay=solver.WEIGHT_DECAY,
        bn_weight_decay=cfg.BN.WEIGHT_DECAY,
        decay_1d=not solver.ZERO_WD_1D_PARAM,
        layer_decay=solver.LAYER_DECAY,
    )
    if solver.OPTIMIZING_METHOD == "adamw":
        return optim.build_adamw(groups, betas=(solver.BETAS[0], solver.BETAS[1]))
    return optim.build_sgd(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)


def batch_shape(cfg: Config) -> BatchShape:
    """Return the number and the size of the clips of a training step, without multigrid."""
    return BatchShape(
        cfg.TRAIN.BATCH_SIZE, cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TRAIN_JITTER_RATE
    )


def build_phases(cfg: Config) -> list[Phase]:
    """Return the phases of training; one, without MULTIGRID.LONG_CYCLE."""
    base, solver = batch_shape(cfg), cfg.SOLVER
    short_factors = cfg.MULTIGRID.SHORT_CYCLE_FACTORS if cfg.MULTIGRID.SHORT_CYCLE else []
    if cfg.MULTIGRID.LONG_CYCLE:
        return multigrid.long_cycles(
            base,
            cfg.DATA.SAMPLING_RATE,
            steps=solver.STEPS,
            max_epoch=solver.MAX_EPOCH,
            epoch_factor=cfg.MULTIGRID.EPOCH_FACTOR,
            gamma=solver.GAMMA,
            factors=cfg.MULTIGRID.LONG_CYCLE_FACTORS,
            short_factors=short_factors,
        )
    shapes = multigrid.short_cycle(base, base.crop_size, short_factors)
    factor = cfg.MULTIGRID.EPOCH_FACTOR if cfg.MULTIGRID.SHORT_CYCLE else 1
    return [Phase(0, int(solver.MAX_EPOCH * factor), shapes, 1.0)]


def without_multigrid(cfg: Config) -> Config:
    """Return a copy of a config whose batches all have the size of the last phase."""
    other = cfg.clone()
    if cfg.MULTIGRID.LONG_CYCLE:  # whose steps need no rates
        other.SOLVER.LR_POLICY = "cosine"
    other.MULTIGRID.LONG_CYCLE = other.MULTIGRID.SHORT_CYCLE = False
    return other


def schedule_text(cfg: Config, batches: EpochBatches, num_processes: int) -> str:
    """Describe the epochs, steps and batches of training, in one line, or with multigrid in several."""
    phases = build_phases(cfg)
    num_epochs = phases[-1].end_epoch
    if len({shape for phase in phases for shape in phase.shapes}) == 1:
        return f"{num_epochs} epochs of {batches.steps(0)} steps of {cfg.TRAIN.BATCH_SIZE} clips"
    norms = [build_norm(cfg, phase.first_epoch, num_processes) for phase in phases]
    lines = multigrid.table(phases, norms, rate_scale(cfg) * cfg.SOLVER.BASE_LR)
    return f"{num_epochs} epochs, {batches.steps_before(num_epochs)} steps\n{lines}"


def step_texts(cfg: Config, num_processes: int) -> list[str]:
    """Describe what a training step does besides the ordinary, in lines."""
    lines = []
    if cfg.TRAIN.ACCUMULATION > 1:
        clips = micro_batch(cfg, batch_shape(cfg), num_processes)
        lines.append(
            f"{cfg.TRAIN.ACCUMULATION} parts of {clips} clips make a step of a process; batch normalization "
            f"sees {clips} clips at a time"
        )
    if (scale := rate_scale(cfg)) != 1:
        lines.append(
            f"learning rates times {scale:g}, from a batch of {cfg.SOLVER.REFERENCE_BATCH_SIZE} to "
            f"{cfg.TRAIN.BATCH_SIZE} clips: {scale * cfg.SOLVER.BASE_LR:g} at the peak"
        )
    return lines


def build_schedule(cfg: Config) -> schedule.Schedule:
    solver, scale, phases = cfg.SOLVER, rate_scale(cfg), build_phases(cfg)
    num_epochs = phases[-1].end_epoch
    warm_up = solver.WARMUP_EPOCHS / num_epochs
    if solver.LR_POLICY == "cosine":
        policy: schedule.Schedule = CosineParamScheduler(scale * solver.BASE_LR, scale * solver.COSINE_END_LR)
        if solver.COSINE_AFTER_WARMUP:
            policy = schedule.later(policy, warm_up)
    else:
        starts, factors = solver.STEPS, solver.LRS
        if cfg.MULTIGRID.LONG_CYCLE:
            starts = [phase.first_epoch for phase in phases]
            factors = [phase.relative_rate for phase in phases]
        elif cfg.MULTIGRID.SHORT_CYCLE:
            starts = [int(start * cfg.MULTIGRID.EPOCH_FACTOR) for start in starts]
        starts = [start / num_epochs for start in starts]
        policy = schedule.steps(scale * solver.BASE_LR, starts, factors)
    return schedule.warm_up(policy, scale * solver.WARMUP_START_LR, warm_up)


def rate_scale(cfg: Config) -> float:
    """Return the factor of the learning rates: the batch size relative to the one they are given for."""
    reference = cfg.SOLVER.REFERENCE_BATCH_SIZE
    return float(cfg.TRAIN.BATCH_SIZE) / reference if reference else 1.0


def build_class_names(cfg: Config) -> ClassNames | None:
    """Return the class names, if the config names a file. Raises InputError if their number is not
    MODEL.NUM_CLASSES.
    """
    if cfg.DATA.CLASS_NAMES:
        path = join(cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.CLASS_NAMES)
        classes = read_class_names(path)
    elif cfg.DATA.LIST_FORMAT == "frames" and not cfg.DATA.MULTI_LABEL:
        path = f"{_annotations(cfg)}labels.json"
        names = read_json_classes(path)
        classes = ClassNames(tuple(names), tuple(range(len(names))))
    else:
        return None
    if len(classes.names) != cfg.MODEL.NUM_CLASSES:
        raise InputError(
            f"{path} names {len(classes.names)} classes, but MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}; "
            f"set it to {len(classes.names)}"
        )
    return classes


def _annotations(cfg: Config) -> str:
    """Return the path prefix of Something-Something-v2's files, as in PySlowFast."""
    return os.path.join(cfg.DATA.PATH_TO_DATA_DIR, "something-something-v2-")


def build_records(cfg: Config, key: str, max_missing: float = 1.0) -> PackedRecords:
    """Return the records of the list in `key`, such as DATA.TRAIN_LIST, and log missing videos.

    Raises InputError if all are missing, or more than the fraction `max_missing`.
    """
    records = PackedRecords(with_frame_rates(_read_list(cfg, key), needed=cfg.DATA.TARGET_FPS > 0))
    if not any(classes_of(record.label) for record in records):
        raise InputError(f"no video of {key} has a label; correct the list")
    missing = missing_videos(records)
    if missing:
        names = ", ".join(record.path for record in missing[:3])
        message = f"{len(missing)} of the {len(records)} videos of {key} do not exist, first {names}"
        if len(missing) == len(records) or len(missing) > max_missing * len(records):
            raise InputError(
                f"{message}; correct DATA.PATH_TO_DATA_DIR, DATA.PATH_PREFIX or the list "
                f"(DATA.MAX_BAD_FRACTION is {cfg.DATA.MAX_BAD_FRACTION})"
            )
        log.warning("%s", message)
    return records


def _read_list(cfg: Config, key: str) -> Iterable[Record]:
    path, root = needed_files(cfg)[key], list_root(cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.PATH_PREFIX)
    size, many = cfg.MODEL.NUM_CLASSES, cfg.DATA.MULTI_LABEL
    if cfg.DATA.LIST_FORMAT == "frames" and many:
        return read_frame_list(path, root=root, labels=None, num_classes=size)
    if cfg.DATA.LIST_FORMAT == "frames":
        names = read_json_classes(f"{_annotations(cfg)}labels.json")
        labels = read_json_labels(
            f"{_annotations(cfg)}{'train' if key == 'DATA.TRAIN_LIST' else 'validation'}.json", names
        )
        return read_frame_list(path, root=root, labels=labels)
    if cfg.DATA.LIST_FORMAT == "folders":
        pattern = cfg.DATA.FRAME_NAMES
        return read_tsm_list(path, root=root, num_classes=size, pattern=pattern, many_labels=many)
    return read_records(
        path,
        root=root,
        num_classes=size,
        class_names=build_class_names(cfg),
        separator=cfg.DATA.PATH_LABEL_SEPARATOR,
        many_labels=many,
    )


def build_training_data(cfg: Config, records: Sequence[Record]) -> ClipDataset:
    """Return the training data: random clips and crops."""
    return ClipDataset(
        records,
        sampler=_sampler(cfg),
        open_video=_open_video(cfg),
        crop=_random_crop(cfg),
        flip=_random_flip(cfg) if cfg.DATA.RANDOM_FLIP else None,
        augment=Compose(_augmentations(cfg)),
        seed=cfg.RNG_SEED,
        num_samples=cfg.AUG.NUM_SAMPLE,
    )


def build_batches(cfg: Config, num_records: int, rank: int = 0, world_size: int = 1) -> EpochBatches:
    """Return the batches of sample keys of this process. Raises InputError if the batch size does not fit the
    list or the number of processes.
    """
    size, samples, phases = cfg.TRAIN.BATCH_SIZE, cfg.AUG.NUM_SAMPLE, build_phases(cfg)
    largest = max(shape.batch_size for phase in phases for shape in phase.shapes)
    if num_records < largest // samples:
        makes = f" makes batches of {largest} clips (MULTIGRID), which" if largest > size else ""
        raise InputError(
            f"TRAIN.BATCH_SIZE {size}{makes} is more than the {num_records} videos of {cfg.DATA.TRAIN_LIST}; "
            "make it smaller"
        )
    if size // samples % (world_size * cfg.TRAIN.ACCUMULATION):
        raise InputError(
            f"TRAIN.BATCH_SIZE {size} does not divide among {world_size} processes; take a multiple of "
            f"{world_size * samples * cfg.TRAIN.ACCUMULATION}"
        )
    return EpochBatches(
        num_records,
        lambda epoch: multigrid.phase_of(phases, epoch).shapes,
        seed=cfg.RNG_SEED,
        rank=rank,
        world_size=world_size,
        num_samples=samples,
    )


def loading(cfg: Config, device: torch.device) -> dict[str, Any]:
    """Return the options that are common to all loaders."""
    return {
        "num_workers": cfg.DATA_LOADER.NUM_WORKERS,
        "timeout": cfg.DATA_LOADER.TIMEOUT,
        "pin_memory": device.type == "cuda",
    }


def build_validation_data(cfg: Config, records: Sequence[Record]) -> ViewDataset:
    """Return the validation data: the centre view of each video at the training size."""
    return _view_dataset(
        cfg,
        records,
        num_clips=1,
        num_crops=1,
        short_side=cfg.DATA.TRAIN_JITTER_SCALES[0],
        crop_size=cfg.DATA.TRAIN_CROP_SIZE,
    )


def _view_dataset(cfg: Config, records: Sequence[Record], **views: int) -> ViewDataset:
    return ViewDataset(
        records,
        sampler=_sampler(cfg),
        open_video=_open_video(cfg),
        num_frames=cfg.DATA.NUM_FRAMES,
        # Images are cropped as in torchvision's transforms.
        halve=half_even if cfg.MODEL.DIMS == 2 else half_up,
        **views,
    )


def build_test_data(cfg: Config, records: Sequence[Record]) -> ViewDataset:
    """Return the test data: clips spread over each video, crops along its longer side."""
    return _view_dataset(
        cfg,
        records,
        num_clips=cfg.TEST.NUM_ENSEMBLE_VIEWS,
        num_crops=cfg.TEST.NUM_SPATIAL_CROPS,
        short_side=cfg.DATA.TEST_SHORT_SIDE or cfg.DATA.TEST_CROP_SIZE,
        crop_size=cfg.DATA.TEST_CROP_SIZE,
    )


def videos_at_once(cfg: Config, data: ViewDataset) -> int:
    """Return the number of videos per group in testing, whose views fit into a batch."""
    return max(1, int(cfg.TEST.BATCH_SIZE) // (data.num_clips * data.num_crops))


def build_targets(cfg: Config) -> Targets:
    """Return the function that makes the targets of a batch."""
    mixup, many = cfg.MIXUP, cfg.DATA.MULTI_LABEL
    if not many and not mixup.ENABLE and not mixup.LABEL_SMOOTH_VALUE:
        return plain_targets
    return Mixer(
        cfg.MODEL.NUM_CLASSES,
        mixup_alpha=mixup.ALPHA,
        cutmix_alpha=mixup.CUTMIX_ALPHA,
        probability=mixup.PROB if mixup.ENABLE else 0.0,
        switch_probability=mixup.SWITCH_PROB,
        smoothing=mixup.LABEL_SMOOTH_VALUE,
        to_targets=many_targets if many else smooth_targets,
    )


def build_normalize(cfg: Config, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function that normalizes uint8 clips on the device."""
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1, 1) for values in (cfg.DATA.MEAN, cfg.DATA.STD)
    )
    return functools.partial(normalize, mean=mean, std=std)


def clip_text(cfg: Config) -> str:
    """Describe a clip: frames x sampling rate, or the number of segments."""
    if cfg.DATA.SAMPLER == "segments":
        return f"{cfg.DATA.NUM_FRAMES} segments"
    rate = f"{cfg.DATA.NUM_FRAMES}x{cfg.DATA.SAMPLING_RATE}" + (
        f" @{cfg.DATA.TARGET_FPS:g}fps" if cfg.DATA.TARGET_FPS else ""
    )
    return rate if cfg.DATA.SAMPLER == "dense" else f"{rate}, {cfg.DATA.SAMPLER}"


def _sampler(cfg: Config) -> Sampler:
    if cfg.DATA.SAMPLER == "segments":
        return SegmentSampler()
    if cfg.DATA.SAMPLER == "slowfast":
        return SlowFastSampler(cfg.DATA.SAMPLING_RATE, cfg.DATA.TARGET_FPS, cfg.DATA.USE_OFFSET_SAMPLING)
    return DenseSampler(cfg.DATA.SAMPLING_RATE, cfg.DATA.TARGET_FPS)


def _open_video(cfg: Config) -> OpenVideo:
    load_backend(cfg.DATA.DECODING_BACKEND)  # a missing library should show here, not in a worker
    index = PacketIndex(cfg.DATA.PATH_TO_DATA_DIR)
    return functools.partial(open_video, backend=cfg.DATA.DECODING_BACKEND, index=index)


def _random_crop(cfg: Config) -> Crop:
    area, aspect = cfg.DATA.TRAIN_JITTER_SCALES_RELATIVE, cfg.DATA.TRAIN_JITTER_ASPECT_RELATIVE
    if area:
        return RandomResizedCrop((area[0], area[1]), (aspect[0], aspect[1]))
    if cfg.DATA.TRAIN_PADDING:
        return PaddedCrop(cfg.DATA.TRAIN_PADDING)
    smallest, largest = cfg.DATA.TRAIN_JITTER_SCALES
    return ShortSideJitter(cfg.DATA.TRAIN_CROP_SIZE, smallest, largest, inverse=cfg.DATA.INV_UNIFORM_SAMPLE)


def _random_flip(cfg: Config) -> RandomFlip:
    classes = build_class_names(cfg)
    return RandomFlip(*directions(classes.names)) if classes else RandomFlip({})


def _augmentations(cfg: Config) -> list[Transform]:
    """Return the transforms that follow crop and flip, in PySlowFast's order."""
    if cfg.AUG.COLOR_JITTER or cfg.AUG.RAND_MAGNITUDE:
        from torchvision.transforms import v2  # the import takes as long as that of torch
    transforms: list[Transform] = []
    if cfg.AUG.COLOR_JITTER:
        transforms.append(OnAllFrames(v2.ColorJitter(*[cfg.AUG.COLOR_JITTER] * 3)))
    if cfg.AUG.RAND_MAGNITUDE:
        transforms.append(OnAllFrames(v2.RandAugment(2, cfg.AUG.RAND_MAGNITUDE)))
    if cfg.AUG.RE_PROB:
        transforms.append(RandomErasing(cfg.AUG.RE_PROB))
    return transforms
