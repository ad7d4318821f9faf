"""Numbers from stored views, against independent computations."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load_script
from numpy.typing import NDArray

from video_iresnet.data.records import Record
from video_iresnet.engine import aggregate
from video_iresnet.engine.aggregate import MEAN, Pooling, Prediction, positions, stack
from video_iresnet.engine.views import FORMAT, VideoOutputs, ViewStore
from video_iresnet.report.results import table, write_predictions, write_results
from video_iresnet.runtime.errors import InputError

N, K, CLIPS, CROPS = 40, 7, 4, 3
FAILED = 11
LABELS = [i * 5 % K for i in range(N)]
RECORDS = [Record(f"v_{i:02d}_g{i % 8:02d}_c1.avi", "", label) for i, label in enumerate(LABELS)]


def softmax(x: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def logits_of(seed: int) -> NDArray[np.float64]:
    """(N, CLIPS, CROPS, K), often right, and better with more views."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, CLIPS, CROPS, K)) + rng.normal(size=(N, 1, 1, K))
    logits[np.arange(N), ..., LABELS] += 1.5
    return logits


def store_of(folder: Path, seed: int, **about: Any) -> ViewStore:
    """Views of these logits, one failed video, and one check whose frames are reversed."""
    logits = logits_of(seed)
    store = ViewStore(folder / "views", {
        "format": FORMAT, "seed": seed, "num_videos": N, "num_classes": K, "num_clips": CLIPS,
        "num_crops": CROPS, "dtype": "float32", "protocol": f"{CLIPS}x{CROPS} @64, clips of 8x2",
        "checks": ["reversed"], "class_names": [f"class {k}" for k in range(K)], **about,
    })  # fmt: skip
    videos = []
    for i in range(N):
        arrays = {}
        for order, values in (("", logits[i]), ("reversed", -logits[i])):
            normalizer = np.log(np.exp(values).sum(-1))
            arrays[order] = {
                "probabilities": softmax(values).astype(np.float32),
                "normalizer": normalizer.astype(np.float32),
            }
        videos.append(VideoOutputs(i, {}, "cut") if i == FAILED else VideoOutputs(i, arrays, ""))
    for rank in range(2):
        store.append(rank, videos[rank::2], RECORDS)
    return store


def right(scores: NDArray[Any]) -> NDArray[np.bool_]:
    """(N, K) scores -> (N, 2): top-1 and top-5 hits; the failed video has none."""
    ranks = (scores > scores[np.arange(N), LABELS][:, None]).sum(1)
    hits = np.stack([ranks < 1, ranks < 5], 1)
    hits[FAILED] = False
    return hits


@pytest.mark.parametrize(
    ("protocol", "clips", "crops"),
    [
        ((1, 1), [1], [1]),
        ((3, 1), [0, 2, 3], [1]),
        ((2, 3), [0, 3], [0, 1, 2]),
        ((4, 3), [0, 1, 2, 3], [0, 1, 2]),
    ],
)
@pytest.mark.parametrize(
    "pooling", [Pooling(how, of) for how in ("mean", "max") for of in ("probabilities", "logits")]
)
def test_protocols_and_pooling(
    protocol: tuple[int, int], clips: list[int], crops: list[int], pooling: Pooling, tmp_path: Path
) -> None:
    store = store_of(tmp_path, 0)
    logits = logits_of(0)
    views = logits[:, clips][:, :, crops].reshape(N, -1, K)
    views = views if pooling.of == "logits" else softmax(views)
    scores = views.mean(1) if pooling.how == "mean" else views.max(1)
    numbers, outcome = aggregate.results([store], protocol, pooling)
    top1, top5 = 100 * right(scores).mean(0)
    assert (numbers["top1_acc"], numbers["top5_acc"]) == pytest.approx((top1, top5))
    assert numbers["top1_acc_readable"] == pytest.approx(top1 * N / (N - 1))
    assert (numbers["num_videos"], numbers["num_failed"], numbers["num_classes"]) == (N, 1, K)
    name = f"{protocol[0]}x{protocol[1]}"
    text = "" if pooling == MEAN else f", {pooling.how} of {pooling.of}"
    assert numbers["protocol"] == f"{name} @64, clips of 8x2{text}"
    assert list(numbers["by_views"])[-1] == name
    centre = right(logits[:, 1, 1])
    assert numbers["by_views"]["1x1"]["top1_acc"] == pytest.approx(100 * centre[:, 0].mean())
    assert set(numbers["temporal_checks"]) == {"reversed"}
    assert numbers["temporal_checks"]["reversed"]["top1_acc"] < top1
    expected = softmax(scores) if pooling.of == "logits" else scores / scores.sum(1, keepdims=True)
    found = outcome.predictions[name]
    readable = np.arange(N) != FAILED
    best = np.argsort(-expected, axis=1)[:, :5]
    assert np.array_equal(found.classes[readable], best[readable])
    np.testing.assert_allclose(
        found.probabilities[readable], np.take_along_axis(expected, best, 1)[readable], rtol=1e-5
    )
    assert (found.classes[FAILED] == -1).all()


def test_clips_of_a_smaller_protocol_are_flush_with_both_ends() -> None:
    assert [positions(m, 10) for m in (1, 2, 3, 4, 10)] == [
        [4], [0, 9], [0, 5, 9], [0, 3, 6, 9], list(range(10))
    ]  # fmt: skip
    assert (positions(1, 1), positions(1, 3), positions(2, 2)) == ([0], [1], [0, 1])
    for stored in range(1, 30):
        for wanted in range(1, stored + 1):
            chosen = positions(wanted, stored)
            assert len(set(chosen)) == wanted
            assert chosen == sorted(chosen)
            assert wanted == 1 or (chosen[0], chosen[-1]) == (0, stored - 1)


def test_equal_probabilities_are_in_the_order_of_classes() -> None:
    assert aggregate.best(np.array([0.2, 0.3, 0.2, 0.3, 0.0, 0.0])).classes.tolist() == [1, 3, 0, 2, 4]


def test_a_probability_of_zero_has_a_finite_logit() -> None:
    views = {
        "probabilities": np.array([[[1, 0, 1e-3]]], np.float16),
        "normalizer": np.array([[3.0]], np.float32),
    }
    scores = aggregate.pool(views, Pooling("mean", "logits"))
    assert scores[0] == pytest.approx(3)
    assert scores[1] == pytest.approx(3 - 24 * math.log(2))


def test_accuracy_counts_unreadable_videos_as_wrong() -> None:
    predictions = stack(
        [
            Prediction(np.array(classes), np.array([0.9, 0.1])) if classes else None
            for classes in ([0, 4], [4, 1], [], [9, 8])
        ]
    )
    measured = aggregate.accuracy(predictions, np.array([0, 1, 2, 3]))
    assert measured == (25.0, 50.0, 100 / 3, 200 / 3)


def test_ensembles_average_the_scores(tmp_path: Path) -> None:
    stores = [store_of(tmp_path / str(seed), seed) for seed in (0, 1, 2)]
    views = [softmax(logits_of(seed)).mean((1, 2)) for seed in (0, 1, 2)]
    numbers, _ = aggregate.results(stores)
    assert numbers["top1_acc"] == pytest.approx(100 * right(np.mean(views, 0))[:, 0].mean())
    single = aggregate.results(stores[:1])[0]["top1_acc"]
    assert numbers["top1_acc"] != single


def test_intervals_are_those_of_resampled_videos() -> None:
    """For hits, the number of right videos of a resample has a binomial distribution."""
    hits = np.zeros((200, 2))
    hits[:150, 0] = hits[:20, 1] = 100
    (low, high), (low5, high5) = aggregate.intervals(hits)
    cumulated = np.cumsum([math.comb(200, k) * 0.75**k * 0.25 ** (200 - k) for k in range(201)])
    assert low == pytest.approx(np.searchsorted(cumulated, 0.025) / 2, abs=0.5)
    assert high == pytest.approx(np.searchsorted(cumulated, 0.975) / 2, abs=0.5)
    assert 4 < low5 < 10 < high5 < 16
    assert aggregate.intervals(hits) == aggregate.intervals(hits)


def test_intervals_over_groups_draw_whole_groups() -> None:
    """Of 30 right and 10 wrong videos: a quarter of the resamples has the first group twice, a quarter the
    second.
    """
    hits = np.array([[100.0]] * 30 + [[0.0]] * 10)
    groups = np.array([0] * 30 + [1] * 10)
    assert aggregate.intervals(hits, groups) == [[0.0, 100.0]]
    ((low, high),) = aggregate.intervals(hits, np.arange(40) % 4)
    rng = np.random.default_rng(5)
    sums = np.bincount(np.arange(40) % 4, hits[:, 0]) / 10
    means = sums[rng.integers(4, size=(20_000, 4))].mean(1)
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1.0)


def test_groups_are_found_in_names() -> None:
    names = [record.name for record in RECORDS]
    assert aggregate.group_numbers(names, "_(g[0-9]+)_").tolist() == [i % 8 for i in range(N)]
    for pattern, message in {
        "g[0-9]+": r"'g\[0-9\]\+' has no group in brackets",
        "(": "is no regular expression",
        "_(g0[1-7])_": "finds nothing in the name v_00_g00_c1.avi",
        "v(x)?": "finds nothing in the name v_00",
    }.items():
        with pytest.raises(InputError, match=f"^--groups .*{message}"):
            aggregate.group_numbers(names, pattern)


def test_calibration_error_by_hand() -> None:
    """Fifteen bins: 0.95 and 0.99 share the last one, and 1/15 is in the first; their neighbours differ."""
    confidence = [0.95, 0.99, 0.5, 1 / 15, 0.3, 0.9, 0.1]
    correct = [True, False, True, False, True, True, True]
    predictions = stack(
        [Prediction(np.array([c]), np.array([p])) for c, p in zip(correct, confidence, strict=True)] + [None]
    )
    labels = np.ones(8, int)
    expected = (abs(0.95 + 0.99 - 1) + abs(0.5 - 1) + 1 / 15 + abs(0.3 - 1) + 0.1 + 0.9) / 7
    assert aggregate.calibration_error(predictions, labels) == pytest.approx(100 * expected)


def test_accuracy_by_class() -> None:
    predictions = stack([Prediction(np.array(c), np.ones(2)) for c in ([0, 1], [1, 0], [1, 2], [1, 2])])
    counts, percent = aggregate.per_class(predictions, np.array([0, 0, 0, 2]), 4)
    assert counts.tolist() == [3, 0, 1, 0]
    np.testing.assert_allclose(percent, [[100 / 3, 200 / 3], [np.nan] * 2, [0, 100], [np.nan] * 2])


def test_views_are_read_a_video_at_a_time(tmp_path: Path) -> None:
    """Of all arrays, those of a few videos are alive."""
    store = store_of(tmp_path, 0)
    ended: list[int] = []

    class Counted(dict[str, Any]):
        def __init__(self, record: int, arrays: Any) -> None:
            super().__init__(arrays)
            self.record = record

        def __del__(self) -> None:
            ended.append(self.record)

    def counted() -> Any:
        for video in store:
            assert len(ended) >= video.record - 3
            yield video._replace(outputs=Counted(video.record, video.outputs))

    outcome = aggregate.predict([counted()], {"4x3": ("", (4, 3))}, N, K)
    assert len(outcome.names) == len(ended) == N


BAD: dict[str, tuple[str, str]] = {
    "no views": ("EMPTY", "EMPTY holds no views of a test; name an OUTPUT_DIR that was tested"),
    "large": (
        "A --protocol 5x3",
        "protocol 5x3 is not among the 4x3 stored views; expected up to 4 clips, and 1 or 3 crops",
    ),
    "crops": ("A --protocol 4x2", "protocol 4x2 is not among the 4x3 stored views"),
    "none": ("A --protocol 0x3", "protocol 0x3 is not among"),
    "word": ("A --protocol ten", "--protocol is ten; expected clips x crops, as in 10x3"),
    "groups": ("A --groups g[0-9]", "--groups 'g[0-9]' has no group in brackets"),
    "videos": ("A SHORT", "num_videos is 40 in the first test and 12 in another; expected tests of one list"),
    "labels": (
        "A LABELS",
        "video 0 is v_00_g00_c1.avi of class 0 in the first test, but v_00_g00_c1.avi of class 1 in another",
    ),
    "several": ("SEVERAL", "SEVERAL holds the views of several tests ("),
    "missing": ("MISSING", "1 of 40 videos are not in "),
    "results": ("RESULTS", "cannot read "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    for name in ("A", "RESULTS", "SEVERAL", "MISSING"):
        store_of(Path(name), 0)
    store_of(Path("SEVERAL"), 1)
    ViewStore(Path("SHORT/views"), {**store_of(Path("B"), 0).about, "num_videos": 12}).append(
        0, [VideoOutputs(i, {}, "cut") for i in range(12)], RECORDS
    )
    other = ViewStore(Path("LABELS/views"), {**store_of(Path("B/B"), 0).about, "other": 1})
    other.append(
        0, [VideoOutputs(i, {}, "cut") for i in range(N)], [record._replace(label=1) for record in RECORDS]
    )
    Path("RESULTS/results.json").write_text("[")
    for path in Path("MISSING").rglob("process_1.sqlite"):
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("DELETE FROM videos WHERE record = 5")
    words, message = BAD[case]
    assert load_script("tools/aggregate.py").main(words.split()) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: {re.escape(message)}[^\n]*\n", error), error


def test_the_tool_writes_what_a_run_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load_script("tools/aggregate.py").main
    stores = [store_of(tmp_path / name, seed) for seed, name in enumerate("ab")]
    for store, name in zip(stores, "ab", strict=True):
        numbers, outcome = aggregate.results([store])
        numbers |= {"checkpoint": name, "epoch": 3, "class_names": store.about["class_names"], "seconds": 1.5}
        numbers |= {"views": f"views/{store.folder.name}"}
        write_results(tmp_path / name / "results.json", numbers)
        write_predictions(tmp_path / name / "predictions.csv", outcome, outcome.predictions["4x3"])
    store_of(tmp_path / "a", 5)  # an unfinished test of other weights
    out = tmp_path / "out.json"
    assert main([str(tmp_path / "a"), "--json", str(out)]) == 0
    assert out.read_bytes() == (tmp_path / "a/results.json").read_bytes()
    printed = capsys.readouterr().out
    assert table(json.loads(out.read_text())) in printed
    for text in ("expected calibration error: ", "2x1               2", "6  class 6"):
        assert text in printed, printed
    options = ["--protocol", "2x1", "--pool", "max", "--of", "logits", "--groups", "_(g..)_"]
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), *options, "--json", str(out)]) == 0
    both = json.loads(out.read_text())
    expected, _ = aggregate.results(stores, (2, 1), Pooling("max", "logits"), "_(g..)_")
    assert {key: both[key] for key in expected} == expected
    assert (both["checkpoint"], both["epoch"]) == (["a", "b"], 3)
    lines = (tmp_path / "a/predictions.csv").read_text().splitlines()
    assert lines[FAILED + 1] == f"{RECORDS[FAILED].name},{LABELS[FAILED]},,,,,,,,,,,cut"
    assert len(lines) == N + 1
