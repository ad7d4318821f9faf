"""Features of videos: means of a stage's output, stored and continued as the views of a test are."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import build
from ..changes import tested_values
from ..config import Config
from ..data.loader import view_loader
from ..data.packed import PackedRecords
from ..engine.evaluate import evaluate
from ..engine.precision import Precision
from ..engine.views import FORMAT, ViewStore, weights_hash
from ..models import ResNet
from ..runtime.cores import usable_cores
from ..runtime.devices import prepare
from ..runtime.distributed import Processes
from ..runtime.errors import InputError, InterruptedRunError
from ..runtime.signals import StopRequest
from ..runtime.storage import atomic_write, exclusive, remove_leftovers

LOGITS = "logits"  # beside the names of stages
PER = {"clip": (1,), "video": (0, 1)}  # over which axes of (clips, crops, channels) the mean is taken


class PooledStage(nn.Module):
    """(B, 3, T, S, S) -> the mean (B, C) of a stage's output over all positions, or the (B, K) logits."""

    def __init__(self, network: ResNet, stage: str) -> None:
        super().__init__()
        self.network, self.stage = network, stage

    def forward(self, clips: Tensor) -> Tensor:
        if self.stage == LOGITS:
            return self.network(clips)  # type: ignore[no-any-return]
        return self.network.features_of(self.stage, clips).flatten(2).mean(2)


@dataclass(frozen=True)
class KeepingFeatures:
    """What testing keeps of features."""

    normalize: Callable[[Tensor], Tensor]

    def keep(self, outputs: Tensor) -> dict[str, Tensor]:
        return {"features": outputs.float()}


def extract(
    network: ResNet,
    cfg: Config,
    records: PackedRecords,
    stage: str,
    folder: Path,
    processes: Processes,
    stop: StopRequest,
) -> ViewStore:
    """Store the features of all views of all videos in FOLDER/views, continuing what was interrupted.

    `cfg`: the config of the training with the views to take. `stage`: one of network.stage_names, or LOGITS.
    All processes call it alike, with the folder locked. Raises InputError for another stage or if the folder
    holds other features, and InterruptedRunError after a request to stop.
    """
    names = [*network.stage_names, LOGITS]
    if stage not in names:
        raise InputError(f"unknown stage {stage!r}; expected one of {', '.join(names)}")
    prepare(processes.device, cfg.ALLOW_TF32, processes.local_size)
    if processes.device.type == "cpu":
        # Sums in a convolution depend on the number of threads, which must not depend on that of processes.
        torch.set_num_threads(usable_cores())
    data = build.build_test_data(cfg, records)
    videos_at_once = build.videos_at_once(cfg, data)
    identity = processes.from_main(records.identity)
    with processes.together():
        about = {
            "format": FORMAT,
            "features": stage,
            "weights": weights_hash(network.state_dict()),
            "config": tested_values(cfg),
            **identity,
            "device": processes.device.type,
            "dtype": "float32",
            "protocol": f"{data.protocol}, clips of {build.clip_text(cfg)}",
            "num_videos": len(records),
        }
        store = ViewStore(folder / "views", about)
        if [path for path in (folder / "views").glob("*") if path != store.folder]:
            raise InputError(
                f"{folder} holds features of other weights, videos, views or of another stage; name another "
                "folder"
            )
        if processes.is_main:
            store.forget_failed(videos_at_once)
    with processes.together():
        done = set(store.records())
    writer = store.writer(processes.rank, records)
    with view_loader(
        data,
        videos_at_once=videos_at_once,
        rank=processes.rank,
        world_size=processes.size,
        done=done,
        **build.loading(cfg, processes.device),
    ) as loader:
        finished = evaluate(
            PooledStage(network, stage),
            loader,
            KeepingFeatures(build.build_normalize(cfg, processes.device)),
            writer.add,
            precision=Precision(processes.device.type, None),
            crop_size=data.crop_size,
            batch_size=cfg.TEST.BATCH_SIZE,
            checks={},
            processes=processes,
            stop=stop,
        )
    with processes.together():
        writer.flush()
    if not finished:
        raise InterruptedRunError(stop.signal, f"stopped; the features so far are in {store.folder}")
    with processes.together():
        store.check_complete()
    return store


def locked(folder: Path, processes: Processes) -> ExitStack:
    """Create a folder and lock it for this run, until the result is closed."""
    held = ExitStack()
    with processes.together():
        if processes.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(exclusive(folder))
            remove_leftovers(folder)
    return held


def features_of(store: ViewStore, per: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the name of each readable video, once, and its features: (clips, C), or (C,) per video."""
    seen = set()
    for video in store:
        if not video.error and video.name not in seen:
            seen.add(video.name)
            views = video.outputs[""]["features"]
            yield video.name, views.mean(PER[per], dtype=np.float64).astype(np.float32)


def write_npz(path: Path, store: ViewStore, per: str) -> None:
    """Write features under the names of the records, one at a time, as numpy.load reads them."""
    with atomic_write(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in features_of(store, per):
            # A ZipInfo of a name alone has no time in it, so that equal features have equal files.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def write_safetensors(path: Path, store: ViewStore, per: str) -> None:
    """Write features under the names of the records, one at a time, where the library would hold them all:
    the length of the header, the header as JSON, the numbers.
    """
    header: dict[str, Any] = {"__metadata__": {"stage": store.about["features"], "per": per}}
    end = 0
    for name, array in features_of(store, per):
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in features_of(store, per):
            file.write(array.astype("<f4").tobytes())


WRITERS = {"npz": write_npz, "safetensors": write_safetensors}
