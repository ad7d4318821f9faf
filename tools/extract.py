"""Extract features of videos with a trained network, for a list of videos or for files and folders:

    python tools/extract.py --checkpoint output/demo --list data/moving_shapes/test.csv --out features
    python tools/extract.py --checkpoint output/demo --stage stage3 --per clip --out features folder_of_videos

A feature is the mean of a stage's output over all positions of a view, then over the crops of each clip, or
over all views of a video. The clips and crops are those of the training's test. It is stored in
OUT/features_per_video.npz (or features_per_clip, .safetensors) under the video's name in the list;
OUT/features.json says what it is and which videos could not be read, and why. The exit status is then 1.

Use `torchrun --nproc-per-node N tools/extract.py ...` for several processes, with the same bits. What was
interrupted continues with the same command. The views stay in OUT/views, so that other files are written
from them without another pass.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

# Waiting threads should sleep: decoding uses the same cores. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from video_iresnet import build
from video_iresnet.config import Config, validate
from video_iresnet.data.packed import PackedRecords
from video_iresnet.data.records import Record
from video_iresnet.engine.views import ViewStore
from video_iresnet.inference import Trained, read_trained
from video_iresnet.inference.features import PER, WRITERS, extract, locked
from video_iresnet.models import WeightsError
from video_iresnet.prep.lists import named_videos
from video_iresnet.report.results import write_results
from video_iresnet.runtime.cores import usable_cores
from video_iresnet.runtime.distributed import Processes, group_of_run
from video_iresnet.runtime.errors import InputError, printable
from video_iresnet.runtime.launchers import torch_variables
from video_iresnet.runtime.signals import StopRequest, follow_launcher


def config(options: argparse.Namespace, trained: Trained) -> Config:
    """Return the config of the training with what the options say."""
    cfg = trained.cfg.clone()
    cfg.DATA.DECODING_BACKEND = "pyav"
    cfg.DATA_LOADER.NUM_WORKERS = options.workers
    cfg.TEST.NUM_ENSEMBLE_VIEWS = options.clips or cfg.TEST.NUM_ENSEMBLE_VIEWS
    cfg.TEST.NUM_SPATIAL_CROPS = options.crops or cfg.TEST.NUM_SPATIAL_CROPS
    if options.list:
        cfg.DATA.TEST_LIST = os.path.abspath(options.list)
        cfg.DATA.PATH_TO_DATA_DIR = options.root or os.path.dirname(cfg.DATA.TEST_LIST)
    validate(cfg)
    return cfg


def records(options: argparse.Namespace, cfg: Config) -> PackedRecords:
    """Return the videos of the list, or of files and folders."""
    if options.list:
        return build.build_records(cfg, "DATA.TEST_LIST")
    paths = named_videos(options.videos, usable_cores(), of_images=cfg.MODEL.DIMS == 2)
    for path in paths:
        if not path.isprintable():  # no key in a file
            raise InputError(f"{path!r} is no printable name; rename it, or name it in a list")
    return PackedRecords(Record(path, path, 0) for path in paths)


def write_files(options: argparse.Namespace, trained: Trained, store: ViewStore) -> int:
    """Write the features and their description; return the number of videos that failed."""
    path, stage = options.out / f"features_per_{options.per}.{options.format}", store.about["features"]
    failed = [(video.name, video.error) for video in store if video.error]
    WRITERS[options.format](path, store, options.per)
    write_results(
        options.out / "features.json",
        {
            "checkpoint": trained.path,
            "network": str(trained),
            "stage": stage,
            "views": store.about["protocol"],
            "num_videos": store.about["num_videos"],
            "failed": dict(failed),
        },
    )
    print(f"{path}: {stage} of {store.about['num_videos'] - len(failed)} videos, per {options.per}")
    if failed:
        print(f"{len(failed)} of {store.about['num_videos']} videos could not be read:", file=sys.stderr)
        for name, error in failed:
            print(f"  {printable(name)}: {printable(error)}", file=sys.stderr)
    return len(failed)


def run(options: argparse.Namespace) -> int:
    if bool(options.list) == bool(options.videos):
        raise InputError("name either --list or videos and folders")
    os.environ |= torch_variables(os.environ)
    stop = StopRequest()
    follow_launcher(stop)
    with group_of_run():
        processes = Processes(use_gpu=options.device == "cuda")
        with locked(options.out, processes):
            with processes.together():
                trained = read_trained(options.checkpoint, processes.device)
                cfg = config(options, trained)
            listed = processes.from_main(lambda: records(options, cfg))
            stage = options.stage or trained.network.stage_names[-1]
            store = extract(trained.network, cfg, listed, stage, options.out, processes, stop)
            failed = 0
            with processes.together():
                if processes.is_main:
                    failed = write_files(options, trained, store)
            return 1 if processes.sum([failed])[0] else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO_OR_FOLDER")
    parser.add_argument("--checkpoint", required=True, metavar="FILE_OR_RUN")
    parser.add_argument("--list", metavar="LIST.csv", help="videos in the list format of the training")
    parser.add_argument(
        "--root", metavar="FOLDER", help="where relative paths of the list start (default: beside it)"
    )
    parser.add_argument("--stage", help="stem, stage1, ... or logits (default: the last stage)")
    parser.add_argument("--per", choices=list(PER), default="video")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--format", choices=list(WRITERS), default="npz")
    parser.add_argument("--clips", type=int, help="per video (default: as in the test)")
    parser.add_argument("--crops", type=int, choices=[1, 3], help="per clip (default: as in the test)")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="cuda if there is one")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options), WeightsError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
