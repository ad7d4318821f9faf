"""Open a page where videos are uploaded or recorded and a trained network classifies them:

    python tools/serve.py --checkpoint output/demo

Needs Gradio: pip install 'video_iresnet[serve]'. Only this machine can open the page, and everyone who
works on it. From another machine, forward the port with ssh -L 7860:localhost:7860 THIS_MACHINE and open
http://localhost:7860 there. Uploads lie in a folder of temporary files: each is removed once it is
classified, and all of them when the page is closed by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.inference import load
from video_iresnet.inference.page import serve
from video_iresnet.inference.upload import Limits
from video_iresnet.models import WeightsError
from video_iresnet.runtime.errors import printable


def open_page(options: argparse.Namespace) -> None:
    """Load the network and serve the page."""
    limits = Limits(options.max_mb, options.max_seconds)
    classifier = load(options.checkpoint)
    print(printable(str(classifier.trained)), flush=True)
    serve(classifier, limits, options.port, lambda address: print(f"open {address}", flush=True))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, or the OUTPUT_DIR of a training")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--max-mb", type=float, default=100, help="the largest upload (default: 100)")
    parser.add_argument("--max-seconds", type=float, default=120, help="the longest video (default: 120)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: open_page(options), WeightsError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
