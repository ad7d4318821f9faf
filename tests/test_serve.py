"""The page to try a network: what it refuses, what it shows in a browser, and what is left of a visit."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import torch
from conftest import DEMO, VARIABLE, copy_video, load_script, small_overrides, start, write_video

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.data.decode.reader import DecodeError
from video_iresnet.inference import Classifier, Prediction, load
from video_iresnet.inference.answer import MOST_WINDOWS, Answer, Point, UploadClassifier
from video_iresnet.inference.local import is_local
from video_iresnet.inference.page import render
from video_iresnet.inference.upload import Limits, open_upload
from video_iresnet.runtime.errors import InputError

LIMITS = Limits(megabytes=1, seconds=3)
# Class names that would be more than text if a page took them for HTML or for a template.
NAMES = [
    "<script>document.title='X'</script>",
    "<img src=x onerror=\"document.title='X'\">",
    "{{ 7 * 7 }}",
    "${7 * 7}",
    "a & b",
    "[link](http://example.com)",
    "plain",
    "ja\u0308ten",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network with clips of 4 frames, 2 apart."""
    cfg = load_config(DEMO, small_overrides(Path("nowhere")))
    torch.manual_seed(0)
    network = build.build_network(cfg, torch.device("cpu"))
    path = tmp_path_factory.mktemp("serve") / "weights.pyth"
    torch.save({"model": network.state_dict(), "cfg": cfg.dump(), "class_names": NAMES}, path)
    return path


@pytest.fixture(scope="module")
def classifier(checkpoint: Path) -> Classifier:
    return load(checkpoint, "cpu")


def upload_classifier(classifier: Classifier, folder: Path) -> UploadClassifier:
    return UploadClassifier(classifier, LIMITS, folder)


def refused(path: Path, limits: Limits = LIMITS) -> str:
    with pytest.raises(DecodeError) as error:
        open_upload(str(path), limits).__exit__()
    return str(error.value)


def test_videos_within_the_limits_are_read(tmp_path: Path) -> None:
    with open_upload(str(write_video(tmp_path / "a.mp4", 75)), LIMITS) as reader:
        assert len(reader) == 75
    with open_upload(str(write_video(tmp_path / "b.mp4", 20, times=VARIABLE)), Limits(1, 1.3)) as reader:
        assert len(reader) == 20


@pytest.mark.parametrize(
    ("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.webm", "libvpx"), ("a.mkv", "libx264")]
)
def test_recordings_without_a_duration_are_read_and_bounded(tmp_path: Path, name: str, codec: str) -> None:
    """As a browser's recorder writes them."""
    path = write_video(tmp_path / name, 50, codec=codec, live=True, options={"b": "1M"})
    with av.open(str(path)) as container:
        assert container.duration is None
    with open_upload(str(path), LIMITS) as reader:
        assert len(reader) == 50
    assert refused(path, Limits(1, 1.5)) == "the video takes 2.0 seconds; at most 1.5 seconds are allowed"


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 20)
    assert refused(text).startswith("this file is no video that can be read: ")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert refused(empty).startswith("this file is no video that can be read: ")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert refused(tmp_path / "pipe.mp4").endswith("it is a named pipe, not a file")
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile '{write_video(tmp_path / 'a.mp4', 5)}'\n")
    assert refused(playlist).startswith("this file is no video that can be read: ")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    assert refused(tmp_path / "link.mp4").endswith("not a file")
    assert refused(tmp_path / "gone.mp4") == "the file cannot be read: No such file or directory"


def test_limits_hold(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 100)
    assert refused(path) == "the video takes 4.0 seconds; at most 3 seconds are allowed"
    large = tmp_path / "large.mp4"
    large.write_bytes(path.read_bytes() + bytes(2**20))
    assert refused(large, Limits(1, 100)).endswith("at most 1 MB are allowed")


@pytest.mark.parametrize(
    ("size", "frames", "expected"),
    [
        ((2400, 4096), 1, "its pictures have 4096x2400 pixels; at most 9,437,184 pixels are allowed"),
        ((1088, 1920), 7, "7 frames of 1920x1088 are too many pixels; send a shorter or a smaller video"),
    ],
)
def test_pixels_are_bounded_before_any_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], frames: int, expected: str
) -> None:
    path = write_video(
        tmp_path / "a.mp4", frames, size=size, picture=lambda _, s: np.zeros((*s, 3), np.uint8)
    )
    monkeypatch.setattr("video_iresnet.data.decode.container.VideoFile.decode", None)
    assert refused(path, Limits(1, 0.1)) == expected


def test_a_duration_is_that_of_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the packets have no usable times, of the decoded ones."""
    path = write_video(tmp_path / "a.avi", 100, codec="mpeg4")
    monkeypatch.setattr("video_iresnet.inference.upload._span", lambda packets: 0)
    assert refused(path) == "the video takes 4.0 seconds; at most 3 seconds are allowed"


@pytest.mark.parametrize("values", [(0, 1), (1, -1), (float("nan"), 1), (1, float("inf"))])
def test_limits_are_positive(values: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="is no positive number"):
        Limits(*values)


def test_an_answer_is_that_of_the_classifier(classifier: Classifier, tmp_path: Path) -> None:
    path = write_video(tmp_path / "uploads/a1/a.mp4", 75)
    expected = classifier(path)
    seconds = 7 / 25  # the span of a clip
    windows = list(classifier.windows(path, seconds, seconds / 2))
    told: list[tuple[float, str]] = []
    answer = upload_classifier(classifier, tmp_path / "uploads").answer(
        str(path), lambda *step: told.append(step)
    )
    assert np.array_equal(answer.whole.probabilities, expected.probabilities)
    assert answer.seconds == pytest.approx(3)
    assert [(w.begin, w.end) for w in answer.windows] == [(w.begin, w.end) for w in windows]
    assert all(
        np.array_equal(one.probabilities, other.probabilities)
        for one, other in zip(answer.windows, windows, strict=True)
    )
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == 1


def test_the_movie_shows_the_best_window(classifier: Classifier, tmp_path: Path) -> None:
    copy = write_video(tmp_path / "a.mp4", 75)
    path = copy_video(copy, tmp_path / "uploads/a1/a.mp4")
    answer = upload_classifier(classifier, tmp_path / "uploads").answer(str(path), lambda *_: None)
    label = answer.whole.top(1)[0].label
    best = max(answer.windows, key=lambda window: window.probabilities[label])
    seen = answer.explanation.seen
    assert answer.explanation.guess.label == label
    centre = Classifier(classifier.trained, clips=1, crops=1)
    (same,) = (w for w in centre.windows(copy, 7 / 25, 3.5 / 25) if w.begin == best.begin)
    assert answer.explanation.guess.probability == pytest.approx(same.probabilities[label], rel=1e-4)
    assert (seen.times[0], seen.times[-1]) == pytest.approx((best.begin, best.end - 1 / 25))
    with av.open(io.BytesIO(answer.movie)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert len(list(container.decode(video=0))) == 7  # all frames of a clip
    assert not list((tmp_path / "uploads").iterdir())


def test_long_videos_have_no_more_windows(classifier: Classifier, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a/a.mp4", 600)
    answer = UploadClassifier(classifier, Limits(10, 60), tmp_path).answer(str(path), lambda *_: None)
    assert len(answer.windows) == MOST_WINDOWS
    assert answer.windows[0].begin == 0
    assert answer.windows[-1].end == pytest.approx(24)
    assert all(a.end >= b.begin for a, b in zip(answer.windows, answer.windows[1:], strict=False))


def test_uploads_are_removed_whatever_happens(classifier: Classifier, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: float, what: str) -> None:
        if done > 0.5:
            raise StoppedError

    uploads = upload_classifier(classifier, tmp_path / "uploads")
    for frames, tell, error in ((50, stop, StoppedError), (100, lambda *_: None, DecodeError)):
        path = write_video(tmp_path / "uploads/a1/a.mp4", frames)
        with pytest.raises(error):
            uploads.answer(str(path), tell)
        assert not list((tmp_path / "uploads").iterdir())
    other = write_video(tmp_path / "kept/a.mp4", 100)
    with pytest.raises(DecodeError):
        uploads.answer(str(other), lambda *_: None)
    assert other.exists(), "a file elsewhere is nobody's upload"


def test_a_video_that_breaks_off_is_a_sentence(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise DecodeError("frame 7 cannot be decoded")

    monkeypatch.setattr(Classifier, "classify", broken)
    path = write_video(tmp_path / "a/a.mp4", 20)
    with pytest.raises(DecodeError, match=r"^this video cannot be decoded: frame 7 cannot be decoded$"):
        upload_classifier(classifier, tmp_path).answer(str(path), lambda *_: None)


def test_lines_show_the_classes_of_the_highest_mean() -> None:
    names = list("abcdefg")
    first = Prediction(0.0, 1.0, np.array([0.0, 0.1, 0.6, 0.1, 0.1, 0.05, 0.05]), names)
    second = Prediction(0.5, 1.5, np.array([0.0, 0.7, 0.0, 0.1, 0.05, 0.1, 0.05]), names)
    unseen: Any = None
    points = Answer(first, [first, second], 1.5, unseen, b"").points()
    assert list(dict.fromkeys(point.name for point in points)) == ["b", "c", "d", "e", "f"]
    assert points[:4] == [Point(0, 0.1, "b"), Point(0.5, 0.1, "b"), Point(1, 0.7, "b"), Point(1.5, 0.7, "b")]
    alone = Answer(first, [first], 1.0, unseen, b"").points()
    assert [point.seconds for point in alone[:3]] == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("127.0.0.1:7860", None, True),
        ("localhost:8000", "http://localhost:8000", True),
        ("[::1]:7860", None, True),
        ("127.0.0.1:7860", "http://evil.example", False),
        ("127.0.0.1:7860", "null", False),
        ("evil.example:7860", None, False),
        ("localhost.evil.example", None, False),
        ("[", None, False),
        ("", None, False),
    ],
)
def test_requests_of_other_sites_are_known(host: str, origin: str | None, expected: bool) -> None:
    headers = {b"host": host.encode()} | ({b"origin": origin.encode()} if origin else {})
    assert is_local(headers) == expected


def test_names_are_text_in_html() -> None:
    text = render("network", views="1", window="1", names=NAMES, many_labels=False) + render(
        "refusal", reason="a <b> c"
    )
    assert "<script" not in text
    assert "<img" not in text
    assert "A &lt;b&gt; c." in text


def test_wrong_arguments_are_one_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load_script("tools/serve.py").main
    assert main(["--checkpoint", str(checkpoint), "--max-mb", "0"]) == 1
    assert capsys.readouterr().err == "error: the limit of 0.0 megabytes is no positive number\n"
    assert main(["--checkpoint", "gone.pyth"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


CHROMIUM = shutil.which("chromium") or ""
needs_browser = pytest.mark.skipif(
    not CHROMIUM or not all(map(importlib.util.find_spec, ("gradio", "playwright"))),
    reason="needs chromium, gradio and playwright",
)


class Site(NamedTuple):
    address: str
    folder: Path  # for temporary files
    process: subprocess.Popen[str]

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture
def site(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The page, started as its user does, in an environment that would open it to others."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folder = tmp_path / "temporary"
    folder.mkdir()
    with monkeypatch.context() as patch:
        for name, value in {
            "TMPDIR": str(folder),
            "GRADIO_SERVER_NAME": "0.0.0.0",
            "GRADIO_ALLOWED_PATHS": str(tmp_path),
            "GRADIO_ANALYTICS_ENABLED": "True",
        }.items():
            patch.setenv(name, value)
        arguments = ("--port", str(port), "--max-mb", "1", "--max-seconds", "3")
        process = start("tools/serve.py", "--checkpoint", str(checkpoint), *arguments)
    try:
        assert process.stdout
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert lines[1] == f"open http://127.0.0.1:{port}\n", [*lines, process.stdout.read()]
        yield Site(f"http://127.0.0.1:{port}", folder, process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


class Browser:
    """A page in Chromium, with all that it asked for and complained of."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.requests, self.errors = page, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address)

    def classify(self) -> None:
        self.page.get_by_role("button", name="Classify", exact=True).click()

    def send(self, path: Path) -> None:
        self.page.set_input_files("input[type=file]", str(path))
        self.page.wait_for_selector("video[src], video source[src]", state="attached")
        self.classify()

    def record(self, milliseconds: int) -> None:
        self.page.get_by_role("button", name="Capture from camera").click()
        self.page.get_by_text("Click to Access Webcam").click()
        self.page.get_by_role("button", name="start recording").click()
        self.page.wait_for_timeout(milliseconds)
        self.page.get_by_text("Stop", exact=True).click()
        self.page.wait_for_selector("video[src]:not([src=''])", state="attached")
        self.classify()


def status(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.fixture
def browser(site: Site) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        devices = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *devices])
        yield Browser(chromium.new_page(), site.address)
        chromium.close()


@pytest.mark.slow
@needs_browser
def test_in_a_browser(site: Site, browser: Browser, classifier: Classifier, tmp_path: Path) -> None:
    page, video = browser.page, write_video(tmp_path / "a.mp4", 50)
    page.get_by_text("What this network knows").click()
    assert page.locator("details li").all_inner_texts() == NAMES

    browser.send(video)
    page.get_by_text("Classes over time as a table").click()
    expected = classifier(video).top(5)
    assert page.locator("dt").all_inner_texts() == [guess.name for guess in expected]
    assert page.locator("dd").all_inner_texts()[:5] == [f"{100 * g.probability:.0f}%" for g in expected]
    assert page.locator(".legend li").count() == 5
    film = page.locator(".movie video")
    assert page.wait_for_function("document.querySelector('.movie video').duration > 0.2")
    assert film.evaluate("film => [film.videoWidth, film.videoHeight]") == [576, 288]
    assert (
        f"Where the network sees {expected[0].name}: the centre of the clip from"
        in page.locator(".movie").inner_text()
    )
    rows = page.locator("tbody tr")
    windows = list(classifier.windows(video, 7 / 25, 3.5 / 25))
    assert rows.count() == len(windows)
    cells = rows.last.locator("td").all_inner_texts()
    first = windows[-1].top(1)[0]
    assert cells[:3] == ["1.7 s", "2.0 s", f"{first.name} {100 * first.probability:.0f} %"]
    assert page.locator("canvas, svg.marks").count()

    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 20)
    browser.send(text)
    page.get_by_text("This file is no video that can be read").wait_for()
    assert rows.count() == page.locator(".movie, .legend").count() == 0, "of the video before"
    browser.send(write_video(tmp_path / "long.mp4", 100))
    page.get_by_text("The video takes 4.0 seconds; at most 3 seconds are allowed.").wait_for()
    browser.classify()
    page.get_by_text("Choose or record a video first.").wait_for()
    assert not browser.errors
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(2**20 + 1))
    page.set_input_files("input[type=file]", str(large))
    page.get_by_text("exceed the maximum allowed size").wait_for()
    page.reload()
    browser.record(2000)
    page.get_by_text("Classes over time as a table").wait_for()
    assert rows.count() >= 1
    assert site.files() == []
    assert page.title() == "Classify a video"
    assert not [url for url in browser.requests if not url.startswith((site.address, "data:", "blob:"))]

    assert status(f"{site.address}/") == 200
    assert status(f"{site.address}/", Host="evil.example") == 403
    assert status(f"{site.address}/gradio_api/upload", Origin="http://evil.example") == 403
    assert status(f"{site.address}/gradio_api/file={video}") == 403

    site.process.send_signal(signal.SIGTERM)
    output, _ = site.process.communicate(timeout=20)
    assert output == "the page is closed, and all uploads are removed\n"
    assert site.process.returncode == 128 + signal.SIGTERM
    assert list(site.folder.iterdir()) == []
