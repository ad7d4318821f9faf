"""A page where videos are uploaded or recorded, and answered; served to this machine alone. Needs Gradio."""

from __future__ import annotations

import base64
import importlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from ..data.decode.reader import DecodeError
from ..runtime.errors import InputError, missing_extra
from .answer import GUESSES, Answer, UploadClassifier
from .local import LocalRequests
from .predictor import Classifier
from .upload import MEGABYTE, Limits

HOST = "127.0.0.1"
WAITING = 8  # videos in the queue; further ones are refused
LIFETIME = 1800  # seconds until an upload that nobody asked about is removed
IN_TABLE = 3  # classes of a window in the table
CAMERA = {"video": {"width": {"ideal": 1280}, "height": {"ideal": 720}}}
COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ec4899", "#8b5cf6")
FONTS = ["system-ui", "sans-serif"]  # of the visitor's system; none is loaded
HERE = Path(__file__).parent


def serve(classifier: Classifier, limits: Limits, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or SIGTERM; then all files of visitors are removed.

    `ready` is called with the address. Raises InputError if the port is taken or Gradio is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="video_iresnet-") as name:
        folder = Path(name).resolve()
        gradio = import_gradio(folder)
        closing = threading.Event()
        blocks = build_page(gradio, UploadClassifier(classifier, limits, folder), closing)
        try:
            _launch(gradio, blocks, limits, port)
            ready(f"http://{HOST}:{port}")
            while True:
                signal.pause()
        except KeyboardInterrupt as stop:
            raise type(stop)("the page is closed, and all uploads are removed") from None
        finally:
            closing.set()
            blocks.close(verbose=False)


def import_gradio(folder: Path) -> Any:
    """Import Gradio with its files in `folder`, such that it connects to no other machine and takes no other
    settings from the environment. Raises InputError if it is not installed.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise missing_extra("the page", "serve", error) from error


def build_page(gradio: Any, uploads: UploadClassifier, closing: threading.Event) -> Any:
    """Return the page as gradio.Blocks. `closing` ends the work on a video."""
    classifier, limits = uploads.classifier, uploads.limits

    def classify(path: str | None, progress: Any = gradio.Progress()) -> dict[Any, Any]:  # noqa: B008
        def tell(done: float, what: str) -> None:
            if closing.is_set():
                raise gradio.Error("The server is being stopped.", print_exception=False)
            progress(done, desc=what)

        empty = dict.fromkeys((video, top, plot, legend, movie, table))  # the upload is gone in any case
        try:
            if path is None:
                raise DecodeError("choose or record a video first")
            answer = uploads.answer(path, tell)
        except (DecodeError, InputError) as error:
            refusal = gradio.HTML(render("refusal", reason=error), visible=True)
            return {**empty, message: refusal, results: gradio.Column(visible=False)}
        rows = [vars(window) | {"guesses": window.top(IN_TABLE)} for window in answer.windows]
        return {
            **empty,
            message: gradio.HTML(visible=False),
            results: gradio.Column(visible=True),
            top: {guess.name: guess.probability for guess in answer.whole.top(GUESSES)},
            plot: _plot(gradio, answer),
            legend: render("legend", colors=dict(zip(answer.shown(), COLORS, strict=False))),
            movie: _movie(answer),
            table: render("windows", rows=rows),
        }

    with gradio.Blocks(
        title="Classify a video", analytics_enabled=False, delete_cache=(60, LIFETIME)
    ) as blocks:
        gradio.HTML(render("heading", description=classifier.trained))
        with gradio.Row():
            with gradio.Column():
                video = gradio.Video(
                    label=f"Video: at most {limits.seconds:g} seconds, {limits.megabytes:g} MB",
                    sources=["upload", "webcam"],  # with these and no format, Gradio does not open the file
                    webcam_options=gradio.WebcamOptions(mirror=False, constraints=CAMERA),
                    height=320,
                )
                button = gradio.Button("Classify", variant="primary")
                message = gradio.HTML(visible=False)
            with gradio.Column():
                top = gradio.Label(label="Classes of the whole video", num_top_classes=GUESSES)
        with gradio.Column(visible=False) as results:
            with gradio.Row():
                with gradio.Column():
                    plot = gradio.LinePlot(label="Classes over time", x="seconds", y="probability")
                    legend = gradio.HTML()
                with gradio.Column():
                    movie = gradio.HTML(container=True)
            table = gradio.HTML()
        views, window = classifier.whole.protocol, classifier.part.protocol
        many_labels = classifier.trained.cfg.DATA.MULTI_LABEL
        names = classifier.class_names
        gradio.HTML(render("network", views=views, window=window, names=names, many_labels=many_labels))
        button.click(
            classify,
            video,
            [video, message, results, top, plot, legend, movie, table],
            show_progress_on=top,
            concurrency_limit=1,
            api_visibility="private",
        )
    return blocks.queue(api_open=False, max_size=WAITING)


def _plot(gradio: Any, answer: Answer) -> Any:
    """Return the lines of the classes, without a legend: Gradio's cuts long names off."""
    names, points = answer.shown(), answer.points()
    return gradio.LinePlot(
        importlib.import_module("pandas").DataFrame(points),
        color="name",
        color_map=dict(zip(names, COLORS, strict=False)),
        colors_in_legend=[],
        color_title=" ",
        x_lim=[0, answer.seconds],
        y_lim=[0, 1],
        x_axis_format="~g",
        y_axis_format=".0%",
    )


def _movie(answer: Answer) -> str:
    """Return the movie as an element that holds it, so that no file has to wait for the browser."""
    explanation, data = answer.explanation, base64.b64encode(answer.movie).decode()
    times = explanation.seen.times
    return render("movie", explanation=explanation, begin=times[0], end=times[-1], data=data)


def render(macro: str, **values: object) -> str:
    """Render a part of page.html.jinja; all values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    parts: Any = environment.get_template("page.html.jinja").module
    return str(getattr(parts, macro)(**values))


def _launch(gradio: Any, blocks: Any, limits: Limits, port: int) -> None:
    """Start the server in threads of this process."""
    middleware = importlib.import_module("starlette.middleware").Middleware(LocalRequests)
    try:
        blocks.launch(
            server_name=HOST,
            server_port=port,
            max_file_size=int(limits.megabytes * MEGABYTE),
            app_kwargs={"middleware": [middleware]},
            theme=gradio.themes.Default(primary_hue="blue", font=FONTS, font_mono=FONTS),
            css=(HERE / "page.css").read_text(encoding="utf-8"),
            footer_links=[],
            share=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            run_history=False,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise InputError(
            f"--port {port} cannot be used, perhaps by another page; name another one"
        ) from error
