"""Export a checkpoint as safetensors, with class names: python tools/export_weights.py --checkpoint A.pyth
--out A.safetensors.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.engine.checkpoint import export_safetensors
from video_iresnet.models import WeightsError, read_weights
from video_iresnet.runtime.errors import InputError


def export(checkpoint: str, out: Path) -> None:
    """Write the file and read it back."""
    if out.exists():
        raise InputError(f"--out {out} exists; name another file, or remove it")
    left_out = export_safetensors(checkpoint, out)
    weights = read_weights(out)
    without = f"; left out: {', '.join(left_out)}" if left_out else ""
    print(f"{out}: {len(weights.tensors)} tensors, {len(weights.class_names)} class names{without}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="weights in any layout that this project reads")
    parser.add_argument("--out", required=True, help="the file to write; an existing one is not overwritten")
    options = parser.parse_args(arguments)
    return exit_code(lambda: export(options.checkpoint, Path(options.out)), WeightsError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
