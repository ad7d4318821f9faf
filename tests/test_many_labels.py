"""Videos with many labels: lists, targets, mean average precision against scikit-learn, and a run from its
lists to its pages and predictions.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEMO, ROOT, RunNet, load_script, run_together, small_overrides, write_video
from numpy.typing import NDArray
from pages import Page
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from video_iresnet import build
from video_iresnet.config import default_config, load_config
from video_iresnet.data.labels import Label, label_tensor
from video_iresnet.data.mixing import Mixer, many_targets
from video_iresnet.data.packed import PackedRecords
from video_iresnet.data.records import Record, read_class_names, read_frame_list, read_records, read_tsm_list
from video_iresnet.data.transforms import RandomFlip
from video_iresnet.engine import aggregate
from video_iresnet.engine.aggregate import Pooling
from video_iresnet.engine.average_precision import average_precisions, mean_average_precision, multi_hot
from video_iresnet.engine.checkpoint import save_checkpoint
from video_iresnet.engine.tasks import ManyLabels
from video_iresnet.engine.views import FORMAT, VideoOutputs, ViewStore
from video_iresnet.inference import load, read_trained
from video_iresnet.inference.explanation import explain, seen_clip
from video_iresnet.inference.export import ExportedNetwork, OnClips, _about
from video_iresnet.inference.page import render
from video_iresnet.inference.parity import compare_on_clips, compare_on_videos, read_videos
from video_iresnet.inference.predictor import Classifier, FrameTensor
from video_iresnet.report.page import run_page
from video_iresnet.report.results import read_predictions, table, write_predictions, write_results
from video_iresnet.report.strips import no_strips
from video_iresnet.runtime.errors import InputError

CONFIG = str(ROOT / "configs/demo/many_labels.yaml")


def read(tmp_path: Path, text: str, **options: Any) -> list[tuple[str, Label]]:
    (tmp_path / "list.txt").write_text(text)
    records = read_records(str(tmp_path / "list.txt"), root="", num_classes=50, many_labels=True, **options)
    return [(record.name, record.label) for record in records]


@pytest.mark.parametrize(
    "text",
    [
        'a b.mp4 3,17,42\nc 9,d.mp4 7\nnone.mp4 ""\n',
        'a b.mp4\t42,17,3\nc 9,d.mp4\t7\nnone.mp4\t""\n',
        'a b.mp4; "3,17,42"\n"c 9,d.mp4" ;7,7\nnone.mp4;""\n',
    ],
)
def test_lists(tmp_path: Path, text: str) -> None:
    """The separator is found although there are commas in paths and between labels."""
    assert read(tmp_path, text) == [("a b.mp4", (3, 17, 42)), ("c 9,d.mp4", (7,)), ("none.mp4", ())]


def test_lists_by_the_numbers_of_class_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("7 run\n9 jump\n")
    names = read_class_names(str(tmp_path / "names.txt"))
    assert read(tmp_path, "a 9,7\nb 9\n", class_names=names) == [("a", (0, 1)), ("b", (1,))]
    with pytest.raises(InputError, match=r"label 8 of line 1 of .* is outside \[7, 9\]"):
        read(tmp_path, "a 7,8\n", class_names=names)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a.mp4 3\nb.mp4\n", {}, "line 2 of .*list.txt is 'b.mp4'; expected `path labels`, as in .*3,17,42`"),
        ("a.mp4,3\n", {}, "line 1 of .* is 'a.mp4,3'; expected `path labels`"),
        ("a.mp4 3,\n", {}, "line 1 of .*expected `path labels`"),
        ("a.mp4 3,-1\n", {}, "line 1 of .*expected `path labels`"),
        ('a.mp4 "3,4\n', {}, "line 1 of .*expected `path labels`"),
        ("a.mp4 3\nb.mp4 2,50,4\n", {}, r"label 50 of line 2 of .* is outside \[0, 50\); correct the list"),
        (f"a.mp4 3,{'7' * 5000}\n", {}, r"label 7{5000} of line 1 of .* is outside \[0, 50\)"),
        ("", {}, "list.txt is empty; expected `path labels`"),
        ("a 1,2\n", {"separator": ","}, "DATA.PATH_LABEL_SEPARATOR is ',', which is between the labels"),
    ],
)
def test_mistakes_in_lists(tmp_path: Path, text: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        read(tmp_path, text, **options)


def test_lists_of_frames_and_folders(tmp_path: Path) -> None:
    """As in PySlowFast's Charades, frames have labels of their own; a video has those of all its frames."""
    rows = [("A", 'A/A-000001.jpg "3,17"'), ("A", 'A/A-000002.jpg ""'), ("A", 'A/A-000003.jpg "42,3"'),
            ("B", 'B/B-000001.jpg ""')]  # fmt: skip
    lines = [f"{video} 0 {i} {row}\n" for i, (video, row) in enumerate(rows)]
    path = tmp_path / "list.txt"
    path.write_text("original_vido_id video_id frame_id path labels\n" + "".join(lines))
    records = read_frame_list(str(path), root="", labels=None, num_classes=50)
    assert [(r.name, r.label, r.num_frames) for r in records] == [("A", (3, 17, 42), 3), ("B", (), 1)]
    for labels, message in {
        '"60"': r"label 60 of the video of line 2",
        "x": "labels x of the video of line 2",
    }.items():
        path.write_text(f"original_vido_id video_id frame_id path labels\nA 0 0 A/A-1.jpg {labels}\n")
        with pytest.raises(InputError, match=message):
            read_frame_list(str(path), root="", labels=None, num_classes=50)
    path.write_text('a b 30 3,17\nc 20 ""\n')
    records = read_tsm_list(str(path), root=str(tmp_path), num_classes=50, many_labels=True)
    assert [(r.name, r.label, r.num_frames) for r in records] == [("a b", (3, 17), 30), ("c", (), 20)]


@pytest.mark.parametrize("kind", ["frames", "folders"])
def test_a_config_reads_such_lists(kind: str, tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    (tmp_path / "A/img_00001.jpg").touch()
    text = {
        "frames": 'original_vido_id video_id frame_id path labels\nA 0 0 A/img_00001.jpg "2,1"\n',
        "folders": "A 1 1,2\n",
    }[kind]
    (tmp_path / "train.csv").write_text(text)
    keys = ["DATA.LIST_FORMAT", kind, "DATA.PATH_TO_DATA_DIR", str(tmp_path), "DATA.CLASS_NAMES", ""]
    cfg = load_config(CONFIG, keys)
    assert [record.label for record in build.build_records(cfg, "DATA.TRAIN_LIST")] == [(1, 2)]
    assert build.build_class_names(cfg) is None
    (tmp_path / "train.csv").write_text(text.replace('"2,1"', '""').replace("1,2", '""'))
    with pytest.raises(InputError, match=r"no video of DATA.TRAIN_LIST has a label; correct the list"):
        build.build_records(cfg, "DATA.TRAIN_LIST")


def test_packed_records_keep_labels() -> None:
    labels: list[Label] = [(), (3,), (0, 7, 42), (1, 2)]
    records = [Record(f"{i}.mp4", f"/v/{i}.mp4", label) for i, label in enumerate(labels)]
    packed = PackedRecords(records)
    assert list(packed) == records
    changed = [*records[:3], records[3]._replace(label=(1, 3))]
    assert PackedRecords(changed).fingerprint() != packed.fingerprint()
    assert (
        PackedRecords([r._replace(path=f"/w{r.path}") for r in records]).fingerprint() == packed.fingerprint()
    )


def test_flips_exchange_each_label() -> None:
    flip = RandomFlip({1: 2, 2: 1}, frozenset({5}))
    clip = torch.arange(4).reshape(1, 1, 4, 1)
    seen = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found, label = flip(clip, (1, 3, 7), rng)
        is_mirrored = not torch.equal(found, clip)
        assert label == ((2, 3, 7) if is_mirrored else (1, 3, 7))
        assert flip(clip, (1, 2), np.random.default_rng(seed))[1] == (1, 2)
        fixed, label = flip(clip, (1, 5), np.random.default_rng(seed))
        assert (torch.equal(fixed, clip), label) == (True, (1, 5))
        seen.add(is_mirrored)
    assert seen == {True, False}


def test_targets_loss_and_mixing() -> None:
    labels = label_tensor([(0, 2), (), (1,)])
    assert labels.tolist() == [[0, 2], [-1, -1], [1, -1]]
    assert label_tensor([(), ()]).shape == (2, 0)
    assert label_tensor([3, 1]).tolist() == [3, 1]
    hot = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    assert torch.equal(many_targets(labels, 4, 0.0), hot)
    assert torch.equal(many_targets(label_tensor([(), ()]), 4, 0.0), torch.zeros(2, 4))
    torch.testing.assert_close(many_targets(labels, 4, 0.2), hot * 0.8 + 0.1)
    cfg = load_config(CONFIG, ["MODEL.NUM_CLASSES", "4"])
    task = build.build_task(cfg, torch.device("cpu"))
    assert isinstance(task, ManyLabels)
    clips = torch.rand(3, 3, 2, 4, 4)
    same, targets = task.targets(clips, labels, np.random.default_rng(0))
    assert torch.equal(same, clips)
    assert torch.equal(targets, hot)
    logits = torch.randn(3, 4)
    expected = F.binary_cross_entropy(logits.sigmoid(), hot)
    torch.testing.assert_close(task.loss(logits, targets), expected)
    assert task.stats(task.sums(expected, logits, labels).tolist())["loss"] == pytest.approx(float(expected))
    mixer = Mixer(4, 1.0, 0.0, 1.0, 0.0, 0.0, many_targets)
    mixed, targets = mixer(clips, labels, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    rng.random()  # whether to mix
    fraction = float(rng.beta(1.0, 1.0))
    torch.testing.assert_close(mixed, clips * fraction + clips.flip(0) * (1 - fraction))
    torch.testing.assert_close(targets, hot * fraction + hot.flip(0) * (1 - fraction))


def sigmoid(x: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, np.float64))))


N, K, CLIPS, CROPS = 30, 6, 3, 3
FAILED, UNSEEN = 7, 4  # a video, and a class that no video has
LABELS: list[Label] = [
    tuple(k for k in range(K) if k != UNSEEN and (i * 7 + k * k) % 5 < 2) for i in range(N)
]
RECORDS = [Record(f"v_{i:02d}.mp4", "", label) for i, label in enumerate(LABELS)]
TARGETS = np.array([[k in label for k in range(K)] for label in LABELS])
SEEN = [k for k in range(K) if k != UNSEEN]


def logits_of(seed: int) -> NDArray[np.float32]:
    """(N, CLIPS, CROPS, K), better with more views."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, CLIPS, CROPS, K)) + rng.normal(size=(N, 1, 1, K)) - 1
    return np.asarray(logits + 1.5 * TARGETS[:, None, None], np.float32)


def store_of(folder: Path, seed: int) -> ViewStore:
    store = ViewStore(folder / "views", {
        "format": FORMAT, "seed": seed, "num_videos": N, "num_classes": K, "num_clips": CLIPS,
        "num_crops": CROPS, "dtype": "float32", "protocol": f"{CLIPS}x{CROPS} @64, clips of 8x2",
        "checks": ["reversed"], "class_names": [f"class {k}" for k in range(K)],
        "config": {"DATA.MULTI_LABEL": True},
    })  # fmt: skip
    videos = [
        VideoOutputs(i, {"": {"logits": values}, "reversed": {"logits": -values}}, "")
        for i, values in enumerate(logits_of(seed))
    ]
    videos[FAILED] = VideoOutputs(FAILED, {}, "cut")
    for rank in range(2):
        store.append(rank, videos[rank::2], RECORDS)
    return store


def precisions(scores: NDArray[Any]) -> list[float]:
    """scikit-learn's, in percent, with the failed video last."""
    scores = scores.copy()
    scores[FAILED] = -1e9
    return [100 * float(average_precision_score(TARGETS[:, k], scores[:, k])) for k in SEEN]


@pytest.mark.parametrize("decimals", [1, 9])
def test_average_precision_is_that_of_the_definition(decimals: int) -> None:
    """The mean over the videos of a class of the precision among those with a score at least theirs; also
    where scores are equal, as most of those with one digit.
    """
    scores = np.random.default_rng(0).random((N, K)).round(decimals)
    found = average_precisions(scores, TARGETS)
    assert np.isnan(found[UNSEEN])
    for k in SEEN:
        above = scores[:, k] >= scores[TARGETS[:, k], k][:, None]
        assert found[k] == pytest.approx(
            100 * (above & TARGETS[:, k]).sum(1).__truediv__(above.sum(1)).mean()
        )
    macro = average_precision_score(TARGETS[:, SEEN], scores[:, SEEN], average="macro")
    assert mean_average_precision(scores, TARGETS) == pytest.approx(100 * macro, abs=1e-12)
    assert mean_average_precision(scores, np.zeros_like(TARGETS)) == 0
    assert np.array_equal(multi_hot(LABELS, K), TARGETS)


@pytest.mark.parametrize(("protocol", "clips"), [((1, 1), [1]), ((2, 3), [0, 2])])
@pytest.mark.parametrize(
    "pooling", [Pooling(h, o) for h in ("mean", "max") for o in ("probabilities", "logits")]
)
def test_results_are_those_of_scikit_learn(
    protocol: tuple[int, int], clips: list[int], pooling: Pooling, tmp_path: Path
) -> None:
    views = logits_of(0).astype(np.float64)[:, clips]
    views = views[:, :, [1] if protocol[1] == 1 else [0, 1, 2]].reshape(N, -1, K)
    views = views if pooling.of == "logits" else sigmoid(views)
    scores = views.mean(1) if pooling.how == "mean" else views.max(1)
    store = store_of(tmp_path, 0)
    numbers, outcome = aggregate.results([store], protocol, pooling)
    expected = precisions(scores)
    assert numbers["map"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert numbers["average_precision"][UNSEEN] is None
    assert [numbers["average_precision"][k] for k in SEEN] == pytest.approx(expected, abs=1e-9)
    assert numbers["map_chance"] == pytest.approx(100 * TARGETS[:, SEEN].mean())
    readable = np.arange(N) != FAILED
    macro = average_precision_score(TARGETS[readable][:, SEEN], scores[readable][:, SEEN])
    assert numbers["map_readable"] == pytest.approx(100 * macro, abs=1e-9)
    assert (numbers["num_videos"], numbers["num_failed"], numbers["num_classes"]) == (N, 1, K)
    name = f"{protocol[0]}x{protocol[1]}"
    assert numbers["by_views"][name] == {"map": numbers["map"]}
    assert numbers["temporal_checks"]["reversed"]["map"] < numbers["map"]
    found = outcome.predictions[name]
    probabilities = sigmoid(scores) if pooling.of == "logits" else scores
    np.testing.assert_allclose(aggregate.scores_of(found)[readable], probabilities[readable], rtol=1e-12)
    assert (np.diff(found.probabilities[readable]) <= 0).all()
    assert np.array_equal(outcome.labels, TARGETS)


def test_ensembles_and_a_test_of_other_labels(tmp_path: Path) -> None:
    stores = [store_of(tmp_path / str(seed), seed) for seed in (0, 1)]
    numbers, _ = aggregate.results(stores)
    views = [sigmoid(logits_of(seed)).mean((1, 2)) for seed in (0, 1)]
    assert numbers["map"] == pytest.approx(np.mean(precisions(np.mean(views, 0))), abs=1e-9)
    other = ViewStore(tmp_path / "views", stores[0].about)
    other.append(0, [VideoOutputs(i, {}, "cut") for i in range(N)], [RECORDS[0], *(
        record._replace(label=(0,)) for record in RECORDS[1:]
    )])  # fmt: skip
    with pytest.raises(
        InputError, match=r"video 1 is v_01.mp4 of class 2,3 in the first .* of class 0 in an"
    ):
        aggregate.results([stores[0], other])
    with pytest.raises(
        InputError, match="--groups is for intervals, which mean average precision has none of"
    ):
        aggregate.results(stores, groups="_(.)")


def test_files_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, outcome = aggregate.results([store_of(tmp_path, 0)])
    write_results(tmp_path / "results.json", numbers | {"class_names": [f"class {k}" for k in range(K)]})
    write_predictions(tmp_path / "predictions.csv", outcome, outcome.predictions["3x3"])
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "video,labels,top1,top2,top3,top4,top5,prob1,prob2,prob3,prob4,prob5,error"
    assert lines[FAILED + 1] == f"{RECORDS[FAILED].name},1,,,,,,,,,,,cut"
    videos = read_predictions(tmp_path / "predictions.csv")
    assert videos.labels.tolist() == LABELS
    assert lines[1].startswith(f'v_00.mp4,"{",".join(map(str, LABELS[0]))}",')
    best = np.argsort(-sigmoid(logits_of(0)).mean((1, 2)), axis=1)[:, :5]
    readable = np.arange(N) != FAILED
    assert np.array_equal(videos.predictions.classes[readable], best[readable])
    assert load_script("tools/aggregate.py").main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert table(json.loads((tmp_path / "results.json").read_text())) in printed
    assert f"chance {numbers['map_chance']:.2f}" in printed
    assert re.search(rf"2  class 2 +{TARGETS[:, 2].sum()} +{numbers['average_precision'][2]:.2f}\n", printed)
    assert "calibration" not in printed
    (tmp_path / "config.yaml").write_text(default_config().dump())
    page = Page(run_page(tmp_path, no_strips("gone")))
    assert f"{numbers['map']:.2f} %" in page.text
    assert "1 of them failed and come last for every class; without them mAP is" in page.text
    by_class = {row[0]: row[2:] for row in page.table("Average precision by class")}
    assert by_class["2 class 2"] == [f"{numbers['average_precision'][2]:.2f}", str(TARGETS[:, 2].sum())]
    assert by_class[f"{UNSEEN} class {UNSEEN}"] == ["-", "0"]
    headings = [text for level, text in page.headings if level == 2]
    assert "Classes" in headings
    assert not {"Confusion matrix", "Most confused pairs"} & set(headings)
    wrong = [
        (-float(videos.predictions.probabilities[i, place]), name)
        for i, name in enumerate(videos.names)
        for place in [next((p for p, k in enumerate(videos.predictions.classes[i]) if k not in LABELS[i]), 0)]
        if i != FAILED
    ]
    assert [text for level, text in page.headings if level == 3] == [name for _, name in sorted(wrong)[:12]]
    assert page.text.count("Is not ") == min(12, len(wrong))
    assert "Taken for" not in page.text
    results = json.loads((tmp_path / "results.json").read_text())
    write_results(tmp_path / "results.json", results | {"average_precision": [1.0]})
    with pytest.raises(InputError, match=r"is no results.json of a test .*an average precision of 1 classes"):
        run_page(tmp_path, no_strips("gone"))


def test_a_page_of_many_classes_has_a_plot_and_the_extremes(tmp_path: Path) -> None:
    """Of 30 classes."""
    size = 30
    targets = np.random.default_rng(0).random((50, size)) < 0.2
    labels = [tuple(map(int, np.flatnonzero(row))) for row in targets]
    about = {
        **store_of(tmp_path, 0).about,
        **{"num_videos": 50, "num_classes": size, "class_names": [], "checks": []},
        **{"num_clips": 1, "num_crops": 1},
    }
    store = ViewStore(tmp_path / "other", about)
    logits = np.random.default_rng(1).normal(size=(50, 1, 1, size)) + targets[:, None, None]
    store.append(
        0,
        [VideoOutputs(i, {"": {"logits": values}}, "") for i, values in enumerate(logits)],
        [Record(f"{i}.mp4", "", label) for i, label in enumerate(labels)],
    )
    numbers, outcome = aggregate.results([store])
    write_results(tmp_path / "results.json", numbers)
    write_predictions(tmp_path / "predictions.csv", outcome, outcome.predictions["1x1"])
    page = Page(run_page(tmp_path, no_strips("gone")))
    worst = page.table("The 20 classes of the lowest average precision")
    ordered = sorted(numbers["average_precision"])
    assert [row[2] for row in worst] == [f"{value:.2f}" for value in ordered[:20]]
    assert page.table("The 20 classes of the highest average precision")[0][2] == f"{ordered[-1]:.2f}"
    assert len(page.table("All classes in their order")) == size


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists of 16 training, 8 validation and 11 test videos of 8 classes. Of the last, one has no label, and
    one cannot be read.
    """
    folder = tmp_path_factory.mktemp("listed")
    few = [
        write_video(folder / f"{frames}.mp4", frames, size=(40, 48)).read_bytes() for frames in (9, 12, 20)
    ]
    for split, number in {"train": 16, "val": 8, "test": 11}.items():
        lines = []
        for i in range(number):
            (folder / f"{split} {i}.mp4").write_bytes(few[i % 3])
            first, second = sorted((i % 8, (i * 3 + 1) % 8))
            lines.append(f"{split} {i}.mp4 {first},{second}\n")
        (folder / f"{split}.csv").write_text("".join(lines))
    (folder / "test 6.mp4").write_bytes(b"")
    (folder / "test.csv").write_text((folder / "test.csv").read_text().replace(" 2,7\n", ' ""\n', 1))
    (folder / "classes.txt").write_text("".join(f"class {k}\n" for k in range(8)))
    return folder


@pytest.fixture(scope="module")
def overrides(folder: Path) -> list[str]:
    return [*small_overrides(folder), "TRAIN.EVAL_PERIOD", "1"]


@pytest.fixture(scope="module")
def run(overrides: list[str], tmp_path_factory: pytest.TempPathFactory, run_net: RunNet) -> Path:
    folder = tmp_path_factory.mktemp("many") / "run"
    assert run_net(*overrides, "OUTPUT_DIR", str(folder), cfg=CONFIG) == 0
    return folder


@pytest.fixture(scope="module")
def classifier(run: Path) -> Classifier:
    return load(run, "cpu")


def test_shapes_with_two_motions(tmp_path: Path, moving_shapes: ModuleType) -> None:
    moving_shapes.write_data_set(tmp_path, {"train": 1}, seed=0, num_shapes=2)
    assert (tmp_path / "train.csv").read_text() == "videos/train_0000.mp4 0,1\n"
    jobs = [moving_shapes.Job(tmp_path, "train", number, 0, 2) for number in (0, 27, 28)]
    assert [job.labels for job in jobs] == [(0, 1), (6, 7), (0, 1)]
    first, last, other = map(moving_shapes.drawn, jobs)
    motions = moving_shapes.MOTIONS
    assert [motion for _, motion in last] == [motions["growing"], motions["shrinking"]]
    assert np.array_equal(moving_shapes.render(first, 0), moving_shapes.render(last, 0))
    assert not np.array_equal(moving_shapes.render(first, 5), moving_shapes.render(last, 5))
    assert not np.array_equal(first[0][0].background, other[0][0].background)
    both, alone = moving_shapes.render(first, 0), moving_shapes.render(first[:1], 0)
    cover, _ = moving_shapes.outline(*first[1], 0)
    assert np.array_equal(both[cover == 0], alone[cover == 0])
    assert (both[cover == 1] != alone[cover == 1]).any()


def test_a_run_measures_what_scikit_learn_does(run: Path, folder: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    (store,) = (ViewStore.open(path) for path in (run / "views").iterdir())
    videos = list(store)
    lines = [line.rsplit(maxsplit=1) for line in (folder / "test.csv").read_text().splitlines()]
    targets = np.array([[k in video.label for k in range(8)] for video in videos])
    listed = [label.replace('""', "") for _, label in lines]
    assert [",".join(map(str, np.flatnonzero(row))) for row in targets] == listed
    assert [video.name for video in videos if video.error] == ["test 6.mp4"]
    scores = np.array(
        [
            np.full(8, -1.0) if video.error else sigmoid(video.outputs[""]["logits"]).mean((0, 1))
            for video in videos
        ]
    )
    seen = targets.any(0)
    macro = 100 * average_precision_score(targets[:, seen], scores[:, seen], average="macro")
    assert results["map"] == pytest.approx(macro, abs=1e-9)
    records = [
        json.loads(line.removeprefix("json_stats: "))
        for line in (run / "json_stats.log").read_text().splitlines()
    ]
    validations = [record for record in records if record["_type"] == "val_epoch"]
    assert [record["max_map"] for record in validations] == [
        validations[0]["map"], max(record["map"] for record in validations)
    ]  # fmt: skip
    tests = [record["map"] for record in records if record["_type"] == "test_final"]
    assert tests == pytest.approx([results["map"]], abs=1e-4)
    assert {"loss", "lr"} <= set(records[0])
    assert "top1_err" not in records[0]
    page = Page((run / "report.html").read_text())
    assert f"{results['map']:.2f} %" in page.text
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["labels"] for row in rows] == listed


def test_the_best_checkpoint_has_the_highest_map(run: Path) -> None:
    path = run / "checkpoints/checkpoint_best.pyth"
    history = torch.load(path, weights_only=True)["position"]["history"]
    last = torch.load(run / "checkpoints/checkpoint_epoch_00002.pyth", weights_only=True)["position"][
        "history"
    ]
    values = [past["map"] for past in last]
    assert history == last[: values.index(max(values)) + 1]


def test_predictions_are_those_of_the_test(
    run: Path, classifier: Classifier, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(run / "predictions.csv", newline="") as file:
        row = next(csv.DictReader(file))
    video = str(folder / row["video"])
    prediction = classifier(video)
    guesses = prediction.top(5)
    assert [str(guess.label) for guess in guesses] == [row[f"top{i}"] for i in range(1, 6)]
    assert [f"{guess.probability:.6f}" for guess in guesses] == [row[f"prob{i}"] for i in range(1, 6)]
    third = guesses[2].probability
    main, out = load_script("tools/predict.py").main, tmp_path / "a.csv"
    arguments = ["--checkpoint", str(run), "--device", "cpu", video]
    assert main([*arguments, "--threshold", str(third), "--csv", str(out)]) == 0
    printed = capsys.readouterr().out
    assert [guess.name in printed for guess in guesses] == [True, True, True, False, False]
    with open(out, newline="") as file:
        written = next(csv.DictReader(file))
    assert [written[f"top{i}"] for i in range(1, 6)] == [*(g.name for g in guesses[:3]), "", ""]
    assert (written["prob3"], written["prob4"], written["error"]) == (f"{third:.6f}", "", "")
    assert main([*arguments, "--threshold", "1"]) == 0
    assert "no class of 100.00% or more" in capsys.readouterr().out


def test_explanations_and_pages_show_the_same_probability(classifier: Classifier) -> None:
    centre = Classifier(classifier.trained, clips=1, crops=1)
    frames = torch.randint(
        0, 256, (16, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    explanation = explain(centre, seen_clip(centre, FrameTensor(frames, 25)))
    best = centre(frames, fps=25).top(1)[0]
    assert explanation.guess.label == best.label
    assert explanation.guess.probability == pytest.approx(best.probability, rel=1e-5)
    shown = {"views": "1", "window": "1", "names": ["a"]}
    assert "a probability of its own" in render("network", **shown, many_labels=True)
    assert "It answers with one of these classes" in render("network", **shown, many_labels=False)


def test_exported_networks_are_compared_by_map(run: Path, folder: Path) -> None:
    trained = read_trained(run, "cpu")
    about = _about(trained, "uint8", "float32")
    assert "sigmoid" in about["output"]
    exported = ExportedNetwork(b"", about, OnClips(trained, trained.network))
    assert compare_on_clips(trained, exported) == (0, pytest.approx(0, abs=9), 0)
    measured = compare_on_videos(trained, exported, read_videos(trained, str(folder / "test.csv")))
    results = json.loads((run / "results.json").read_text())
    assert measured.original["map"] == pytest.approx(results["map"], abs=1e-6)
    assert measured.original == measured.exported
    assert re.search(rf"accuracy in percent +mAP\n.*\noriginal +{results['map']:.2f}\n", str(measured))


def test_runs_are_compared_but_for_the_pairs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((run / "results.json").read_text())
    out = tmp_path / "compared.json"
    assert load_script("tools/compare.py").main([str(run), str(run), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"{run} +{results['map']:.2f} +11 +1 ", printed)
    assert "cannot be compared: McNemar's test is for videos of one label" in printed
    (numbers,) = json.loads(out.read_text())["runs"].values()
    assert numbers["map"] == results["map"]
    page = tmp_path / "page.html"
    assert load_script("tools/report.py").main([str(run), str(run), "--out", str(page)]) == 0
    shown = Page(page.read_text())
    assert shown.table("Accuracy in percent")[0][1] == f"{results['map']:.2f}"
    assert len(shown.table("Average precision in percent by class")) == 8
    assert "McNemar's test is for videos of one label" in shown.text


@pytest.mark.slow
def test_a_test_on_two_processes_has_the_same_results(
    run: Path, overrides: list[str], tmp_path: Path
) -> None:
    """To the last digit, and so has a validation on two processes."""
    checkpoint = run / "checkpoints/checkpoint_epoch_00002.pyth"
    words = [
        "tools/run_net.py",
        "--cfg",
        CONFIG,
        *overrides,
        "OUTPUT_DIR",
        str(tmp_path),
        "TRAIN.ENABLE",
        "False",
    ]
    run_together(2, *words, "TEST.CHECKPOINT_FILE_PATH", str(checkpoint))
    changing = ("checkpoint", "seconds", "stamp", "epoch")
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (run, tmp_path))
    assert {k: v for k, v in one.items() if k not in changing} == {
        k: v for k, v in two.items() if k not in changing
    }
    assert (run / "predictions.csv").read_bytes() == (tmp_path / "predictions.csv").read_bytes()


def test_weights_of_one_label_start_a_run_of_many(
    overrides: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    """But they are not tested as if they were of many."""
    cfg, weights = load_config(DEMO, overrides), tmp_path / "one.pyth"
    network = build.build_network(cfg, torch.device("cpu"))
    save_checkpoint(weights, {"model_state": network.state_dict(), "cfg": cfg.dump(), "class_names": []})
    short = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "TEST.ENABLE", "False"]
    start = ["TRAIN.CHECKPOINT_FILE_PATH", str(weights), "OUTPUT_DIR", str(tmp_path / "many")]
    assert run_net(*overrides, *short, *start, cfg=CONFIG) == 0
    assert re.search(r"skipped +0\n", (tmp_path / "many/stdout.log").read_text())
    test = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", str(weights)]
    assert run_net(*overrides, *test, "OUTPUT_DIR", str(tmp_path / "test"), cfg=CONFIG) == 1
    expected = "was trained with DATA.MULTI_LABEL False, but it is True; set it to False"
    assert expected in capsys.readouterr().err


def test_no_head_of_probabilities_that_sum_to_1() -> None:
    with pytest.raises(
        InputError, match=r"MODEL.HEAD_PER_POSITION is True, .* DATA.MULTI_LABEL is True; set one"
    ):
        load_config(CONFIG, ["MODEL.HEAD_PER_POSITION", "True"])


def test_preparation_keeps_the_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transcode.py, verify.py and shards.py; a list is written without commas before labels."""
    raw = tmp_path / "raw"
    write_video(raw / "a b.mp4", 6)
    (raw / "c.mp4").write_bytes((raw / "a b.mp4").read_bytes())
    (raw / "train.csv").write_text('a b.mp4\t3,17\nc.mp4\t""\ngone.mp4\t4,5\n')
    out = tmp_path / "out"
    common = ["--workers", "0", "--many-labels"]

    def main(name: str, *arguments: object) -> None:
        assert load_script(f"data_prep/{name}.py").main([*map(str, arguments), *common]) == 0, (
            capsys.readouterr()
        )

    def listed(path: Path) -> list[tuple[str, Label]]:
        records = read_records(str(path), root="", num_classes=20, many_labels=True)
        return [(record.name, record.label) for record in records]

    main("transcode", "--list", raw / "train.csv", "--out", out, "--short-side", 32, "--preset", "ultrafast")
    assert listed(out / "train.csv") == [("a b.mp4", (3, 17)), ("c.mp4", ())]
    main("verify", "--list", raw / "train.csv")
    assert listed(raw / "train_clean.csv") == [("a b.mp4", (3, 17)), ("c.mp4", ())]
    found = json.loads((raw / "train_verify.json").read_text())
    assert [row["label"] for row in found["bad"]] == ["4,5"]
    assert {row["label"]: row["good"] for row in found["classes"]} == {3: 1, 4: 0, 5: 0, 17: 1}
    assert found["copies"][0]["remarks"] == ["different labels"]
    main("shards", "--list", out / "train.csv", "--out", tmp_path / "shards")
    assert (tmp_path / "shards/train.csv").read_bytes() == (out / "train.csv").read_bytes()
