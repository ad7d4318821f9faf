"""Half precision: what computes in it, and the check of the convolutions before."""

from __future__ import annotations

import pytest
import torch
from conftest import DEMO
from torch import nn

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.runtime.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_precision_of_a_config(half: str) -> None:
    """Convolutions and linear layers compute in half precision, by key."""
    layer, inputs = nn.Linear(2, 3), torch.ones(1, 2)
    for enabled, expected in ((True, getattr(torch, half)), (False, torch.float32)):
        text = f"TRAIN.MIXED_PRECISION {enabled} TRAIN.HALF_DTYPE {half}"
        precision = build.build_precision(load_config(DEMO, text.split()), CPU)
        with precision.autocast():
            assert layer(inputs).dtype is expected
        assert layer(inputs).dtype is torch.float32
        assert precision.needs_scaler is (expected is torch.float16)


@pytest.mark.parametrize("key", ["TRAIN.HALF_DTYPE"])
def test_keys_of_half_precision_are_checked_for_tests_too(key: str) -> None:
    with pytest.raises(InputError, match=f"^{key} is half; expected one of .*float"):
        load_config(DEMO, ["TRAIN.ENABLE", "False", key, "half"])
