"""Export a trained network: python tools/export.py --checkpoint FILE --out NAME [...].

The name of --out says what is written:

    .onnx         an ONNX graph, for ONNX Runtime and others (pip install 'video_iresnet[onnx]')
    .pt2          a program for torch.export.load
    .safetensors  the weights alone, with class names and config, which everything here reads as a checkpoint
    (none)        a folder for the Hugging Face Hub (pip install 'video_iresnet[hub]'): weights, config, and a
                  model card with the figures of the run; fill in its licence, then
                  `hf upload OWNER/NAME FOLDER`

    python tools/export.py --checkpoint output/demo --out demo.onnx
    python tools/export.py --checkpoint output/demo --out demo_int8.onnx --precision int8 \\
        --videos data/moving_shapes/test.csv
    python tools/export.py --checkpoint output/demo/checkpoints/checkpoint_best.pyth --out demo.safetensors
    python tools/export.py --checkpoint output/demo --out hub/demo

ONNX and .pt2 take any number of clips of the test's size and return logits. The file says in JSON what its
classes are and how clips are made: under the key video_iresnet of ONNX' metadata, or in the extra file
video_iresnet.json of .pt2. It is read back and compared with the network on clips of random pixels; in
float32, one whose logits differ by more than 1e-4 (relative to the largest, where that is above 1) is not
written. --videos also compares the accuracy on a list of videos.

float16 halves a file and int8 makes it a quarter; on CPUs, neither need be faster, so measure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.engine.checkpoint import export_safetensors
from video_iresnet.inference import read_trained
from video_iresnet.inference.export import INPUTS, PRECISIONS, export_onnx, export_torch
from video_iresnet.inference.parity import compare_on_clips, compare_on_videos, read_videos
from video_iresnet.models import WeightsError, read_weights
from video_iresnet.runtime.errors import InputError, printable
from video_iresnet.runtime.storage import atomic_write

GRAPHS = {".onnx": export_onnx, ".pt2": export_torch}
OF_GRAPHS = {"input": "uint8", "precision": "float32", "videos": ""}  # options and their defaults


def export(options: argparse.Namespace) -> None:
    """Write what the name of --out asks for, unless it exists."""
    out = Path(options.out)
    if out.exists():
        raise InputError(f"--out {out} exists; name another one, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix in GRAPHS:
        write_graph(options, out)
    elif given := [name for name, default in OF_GRAPHS.items() if getattr(options, name) != default]:
        raise InputError(f"--{given[0]} is for .onnx and .pt2, and --out is {out}; leave it out")
    elif out.suffix == ".safetensors":
        write_weights(options.checkpoint, out)
    elif not out.suffix:
        write_folder(options.checkpoint, out)
    else:
        raise InputError(
            f"--out is {out}; expected a name in .onnx, .pt2 or .safetensors, or a folder's without"
        )


def write_graph(options: argparse.Namespace, out: Path) -> None:
    """Write ONNX or a program of torch.export, and print how it compares with the network."""
    trained = read_trained(options.checkpoint, "cpu")
    videos = read_videos(trained, options.videos) if options.videos else None
    print(trained)
    exported = GRAPHS[out.suffix](trained, input_type=options.input, precision=options.precision)
    difference = compare_on_clips(trained, exported)
    with atomic_write(out, "wb") as file:
        file.write(exported.contents)
    print(f"{printable(str(out))}: {exported}\nrandom clips: {difference}")
    if videos:
        print(compare_on_videos(trained, exported, videos))
    else:
        print("the accuracy was not measured; --videos compares it on a list of videos")


def write_weights(checkpoint: str, out: Path) -> None:
    """Write safetensors and read them back."""
    left_out = export_safetensors(checkpoint, out)
    weights = read_weights(out)
    without = f"; left out: {', '.join(left_out)}" if left_out else ""
    print(f"{out}: {len(weights.tensors)} tensors, {len(weights.class_names)} class names{without}")


def write_folder(checkpoint: str, out: Path) -> None:
    """Write a folder for the Hugging Face Hub."""
    from video_iresnet.inference.hub import HubClassifier

    classifier = HubClassifier(read_trained(checkpoint, "cpu"))
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        whole = Path(folder, out.name)
        classifier.save_pretrained(whole)
        whole.rename(out)
    names = ", ".join(sorted(path.name for path in out.iterdir()))
    print(f"{classifier.trained}\n{out}: {names}; fill in the licence in README.md")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, help="a checkpoint, or, but for .safetensors, the OUTPUT_DIR of a run"
    )
    parser.add_argument("--out", required=True, help="what to write; nothing that exists is overwritten")
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default=OF_GRAPHS["input"],
        help="uint8: RGB clips, normalized inside (default); float32: normalized clips",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=OF_GRAPHS["precision"],
        help="of weights and convolutions; int8: ONNX Runtime's dynamic quantization, for .onnx",
    )
    parser.add_argument(
        "--videos",
        default=OF_GRAPHS["videos"],
        metavar="LIST.csv",
        help="compare the accuracy on these videos, by the test of the training; their paths start at the "
        "folder of the list",
    )
    options = parser.parse_args(arguments)
    return exit_code(lambda: export(options), WeightsError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
