"""What a training shows of its first batch and of its config, in its folder and in TensorBoard."""

from __future__ import annotations

import io
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RunNet
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from video_iresnet import build, run
from video_iresnet.config import load_config
from video_iresnet.data.loader import ClipBatch, collate_clips
from video_iresnet.report import contact_sheet
from video_iresnet.report.contact_sheet import LINE, MARGIN, Row, batch_sheet, noting_first, png, sheet


def batch_of(num_clips: int, num_frames: int, size: int = 32) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(256, (num_clips, 3, num_frames, size, size), dtype=torch.uint8, generator=generator)
    return ClipBatch(clips, torch.arange(num_clips) % 3, [])


def cell(picture: Image.Image, row: int, column: int, size: int = 32) -> np.ndarray:
    top, left = MARGIN + LINE + row * (size + LINE + 2 * MARGIN), MARGIN + column * (size + MARGIN)
    return np.asarray(picture)[top : top + size, left : left + size]


def test_a_sheet_shows_at_most_eight_clips_of_eight_frames() -> None:
    for num_frames, step in ((4, 1), (8, 1), (9, 2), (32, 4)):
        batch = batch_of(10, num_frames)
        picture = batch_sheet(batch, [])
        assert picture.height == MARGIN + 8 * (32 + LINE + 2 * MARGIN)
        shown = range(0, num_frames, step)
        for column, frame in enumerate(shown):
            for row in range(8):
                expected = batch.clips[row, :, frame].permute(1, 2, 0).numpy()
                assert np.array_equal(cell(picture, row, column), expected)
        assert (cell(picture, 0, len(shown)) == 255).all()


def test_titles_are_labels_or_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Row] = []
    monkeypatch.setattr(contact_sheet, "sheet", rows.extend)
    batch_sheet(batch_of(4, 2), [])
    batch_sheet(batch_of(2, 2), ["jump", "run", "walk"])
    assert [row.title for row in rows] == ["0", "1", "2", "0", "0: jump", "1: run"]
    monkeypatch.undo()
    clip = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    plain, titled = (np.asarray(sheet([Row(clip, title)])) for title in ("", "0: jump"))
    changed = np.argwhere((plain != titled).any(2))
    assert len(changed) > 20
    assert changed[:, 0].max() < MARGIN + LINE


def test_a_png_keeps_every_pixel() -> None:
    picture = batch_sheet(batch_of(2, 3), [])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), np.asarray(picture))


def test_the_first_batch_is_noted_when_it_is_taken() -> None:
    noted: list[ClipBatch] = []
    batches = [batch_of(1, 1), batch_of(2, 1)]
    iterator = noting_first(iter(batches), noted.append)
    assert noted == []
    assert next(iterator) is batches[0]
    assert len(noted) == 1
    assert noted[0] is batches[0]
    assert next(iterator) is batches[1]
    assert len(noted) == 1
    empty = ClipBatch(torch.empty(0), torch.empty(0), [])
    assert next(noting_first(iter([empty]), noted.append)) is empty
    assert len(noted) == 1


def events_of(folder: Path) -> EventAccumulator:
    guidance = {"images": 0, "tensors": 0, "scalars": 0}  # keep all of them
    return EventAccumulator(str(folder / "tensorboard"), guidance).Reload()


def test_a_fresh_training_shows_its_first_batch_and_its_config(
    small: list[str], tmp_path: Path, run_net: RunNet
) -> None:
    command = [*small, "OUTPUT_DIR", str(tmp_path), "TEST.ENABLE", "False", "DATA.RANDOM_FLIP", "True"]
    assert run_net(*command, "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0") == 0
    cfg = load_config(str(tmp_path / "config.yaml"))
    records = build.build_records(cfg, "DATA.TRAIN_LIST")
    data = build.build_training_data(cfg, records)
    batch = collate_clips([data[key] for key in next(iter(build.build_batches(cfg, len(records))))])
    names = build.build_class_names(cfg)
    assert names
    expected = png(batch_sheet(batch, names.names))
    assert (tmp_path / "first_batch.png").read_bytes() == expected
    events = events_of(tmp_path)
    (image,) = events.Images("first_batch")
    assert (image.step, image.encoded_image_string) == (0, expected)
    assert (image.width, image.height) == Image.open(io.BytesIO(expected)).size

    (tmp_path / "first_batch.png").write_text("as it was")
    assert run_net(*command, "SOLVER.MAX_EPOCH", "2", "SOLVER.WARMUP_EPOCHS", "0") == 0
    assert (tmp_path / "first_batch.png").read_text() == "as it was"
    events = events_of(tmp_path)
    assert len(events.Images("first_batch")) == 1
    assert events.SummaryMetadata("config").plugin_data.plugin_name == "text"
    texts = {event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors("config")}
    assert list(texts) == [0, 3]
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    assert texts[3].splitlines() == [f"    {line}" for line in lines]
    assert "    MAX_EPOCH: 1" in texts[0].replace("  MAX", "MAX")


def test_a_full_disk_ends_no_run(
    small: list[str],
    tmp_path: Path,
    run_net: RunNet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    show = run.show_batch

    def without_room(*arguments: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            show(*arguments)  # type: ignore[arg-type]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(run, "show_batch", without_room)
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path), "TEST.ENABLE", "False") == 0
    assert f"cannot write {tmp_path / 'first_batch.png'}: File too large" in capsys.readouterr().out
    assert not (tmp_path / "first_batch.png").exists()
    assert not list(tmp_path.glob(".*.partial"))
