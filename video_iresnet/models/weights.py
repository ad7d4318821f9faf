"""Load weights from files without executing code, fit them to a network, and report every tensor."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .inflate import METHODS, identical_frames_difference, inflate_kernel
from .released import LAYOUTS, describe, roles, to_our_names
from .resnet import ResNet

HEAD = ("fc.weight", "fc.bias")
# Under names like these files hold their tensors: released iResNet and torchvision; PySlowFast, PyTorchVideo
# and ours; others.
STATES = ("state_dict", "model_state", "model_state_dict", "model")
# Under this name our files hold the moving average of the tensors, which is what was validated.
AVERAGE = "ema_state"
# ResNet-50 shares 87 % of its tensors with iResNet-50, iResNet-101 half of them.
MIN_FRACTION = 0.8
# Limit of the check on identical frames, in float64.
MAX_DIFFERENCE = 1e-6
# Types of kernels. Integers would belong to a quantized network, with scales elsewhere.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LONGEST_NAME = 1000


class WeightsError(ValueError):
    """A file that cannot be read or does not fit. The message is one line: the file, the tensor, what was
    expected, the remedy.
    """


class Weights(NamedTuple):
    """The tensors of a file, and its other contents."""

    name: str
    tensors: dict[str, Tensor]
    class_names: list[str]
    info: dict[str, Any]


@dataclass(frozen=True)
class LoadReport:
    """The result of `load_weights`.

    `loaded`, `inflated`: the network's tensors that were set. `missing`: those that keep their initial
    values. `skipped`: unused tensors of the file, with reasons. `difference`: see
    inflate.identical_frames_difference; None if nothing was inflated, or if the file lacks a convolution.
    """

    source: str
    target: str
    loaded: list[str]
    inflated: list[str]
    missing: list[str]
    skipped: dict[str, str]
    fraction: float
    method: str | None = None
    difference: float | None = None
    class_names: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not self.missing and not self.skipped

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.target}: {100 * self.fraction:.1f} % of the backbone's tensors"]
        lines.append(f"  loaded   {len(self.loaded):5d}")
        lines.append(f"  inflated {len(self.inflated):5d}" + (f" ({self.method})" if self.inflated else ""))
        lines.append(f"  skipped  {len(self.skipped):5d}")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"    {reason}: {_some(names)}" for reason, names in reasons.items()]
        lines.append(
            f"  missing  {len(self.missing):5d}"
            + (f" (reinitialized): {_some(self.missing)}" if self.missing else "")
        )
        if self.difference is not None:
            lines.append(
                f"  identical frames give the image network's logits to {self.difference:.1e}"
                + self._remark()
            )
        return "\n".join(lines)

    def _remark(self) -> str:
        return (
            ""
            if self.method == "center"
            else " (averaged kernels see zeros before the first and after the last frame)"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def load_weights(
    net: ResNet,
    source: str | os.PathLike[str] | Weights,
    *,
    inflate: str | None = None,
    min_fraction: float = MIN_FRACTION,
    strict: bool = False,
) -> LoadReport:
    """Load the weights of a file into a network. The layout is detected.

    Known layouts: video_iresnet (.pyth, .safetensors), the released iResNet family, torchvision's 2D ResNets
    and video ResNets, PyTorchVideo's and PySlowFast's slow, c2d and i3d. `inflate`: "average" or "center"
    (see inflate.inflate_kernel), for an image network's weights in a video network. A head with another
    number of classes is reinitialized. `strict`: every tensor must be present, the head included, as in
    testing.

    Raises WeightsError, with the network unchanged, if the file cannot be read, if a tensor has another
    shape, is not dense or has values that are not finite, or if the fitting tensors are less than
    `min_fraction` of the larger backbone's.
    """
    if inflate not in (None, *METHODS):
        raise ValueError(f"inflate is {inflate!r}; expected None or one of {', '.join(METHODS)}")
    weights = source if isinstance(source, Weights) else read_weights(source)
    _check_tensors(weights.name, weights.tensors)
    known = to_our_names(weights.tensors)
    if known is None:
        raise WeightsError(
            f"weights {weights.name} have no layout that is known (the first tensors are "
            f"{_some(list(weights.tensors))}); expected that of "
            f"{'; '.join(layout.name for layout in LAYOUTS)}"
        )
    layout, file_names = known
    theirs = {name: weights.tensors[key] for name, key in file_names.items()}
    ours = net.state_dict()
    fit = _fit(ours, theirs, file_names, weights.name, inflate)
    title, target = f"{weights.name} ({layout.name}: {describe(theirs)})", describe(ours)
    _check_fit(fit, title, target, file_names, 1.0 if strict else min_fraction, strict)
    for name, value in fit.values.items():
        if not value.to(ours[name].dtype).isfinite().all():
            raise WeightsError(
                f"weights {weights.name}: {file_names[fit.sources[name]]} holds values that are not finite "
                "(NaN, or infinite); take a checkpoint from before the training diverged"
            )
    difference = None
    if fit.inflated and not any(ours[name].ndim > 2 for name in fit.missing):
        # A tensor of the image network is that of the file, or the video network's own where the file has
        # none.
        image_tensors = {name: fit.images.get(name, tensor) for name, tensor in ours.items()}
        difference = identical_frames_difference(net, fit.values, image_tensors)
        if inflate == "center" and not difference < MAX_DIFFERENCE:
            raise WeightsError(
                f"weights {weights.name}: after inflating, identical frames give logits that differ by "
                f"{difference:.1e} from the image network's; expected less than {MAX_DIFFERENCE:.0e}; take "
                "another file"
            )
    with torch.no_grad():
        for name, value in fit.values.items():
            ours[name].copy_(value)
    skipped = {file_names[name]: reason for name, reason in fit.skipped.items()}
    inflated = [name for name in fit.values if name in fit.inflated]
    loaded = [name for name in fit.values if name not in fit.inflated]
    return LoadReport(
        title,
        target,
        loaded,
        inflated,
        fit.missing,
        skipped,
        fit.fraction,
        inflate if inflated else None,
        difference,
        weights.class_names,
    )


@dataclass
class _Fit:
    """Match the file's tensors to the network's, under our names."""

    values: dict[str, Tensor] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    inflated: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)
    fraction: float = 0.0


def _fit(
    ours: dict[str, Tensor],
    theirs: dict[str, Tensor],
    file_names: dict[str, str],
    path: str,
    inflate: str | None,
) -> _Fit:
    fit = _Fit()
    our_roles, their_roles = roles(ours), roles(theirs)
    for role, name in our_roles.items():
        if role not in their_roles:
            if not _is_counter(name):  # older files have no counters, and nothing depends on them
                fit.missing.append(name)
            continue
        if their_roles[role] != name:
            fit.moved.append(name)
        value = theirs[their_roles[role]]
        fit.sources[name] = their_roles[role]
        expected = ours[name].shape
        if value.dtype not in FLOATS and not _is_counter(name):
            raise WeightsError(
                f"weights {path}: {file_names[their_roles[role]]} is of type {value.dtype}, expected one of "
                f"{', '.join(map(str, FLOATS))}; convert it, and save it again"
            )
        if value.shape == expected:
            fit.values[name] = fit.images[name] = value
        elif (
            value.ndim == 4
            and len(expected) == 5
            and (*value.shape[:2], *value.shape[2:]) == (*expected[:2], *expected[3:])
        ):
            if inflate is None:
                raise WeightsError(
                    f"weights {path} are an image network's: {file_names[their_roles[role]]} is "
                    f"{tuple(value.shape)}, expected {tuple(expected)}; inflate them with inflate='average' "
                    "or 'center' (TRAIN.CHECKPOINT_INFLATE), or create_model(..., dims=2)"
                )
            fit.values[name] = inflate_kernel(value, expected[2], inflate)
            fit.images[name] = value
            fit.inflated.add(name)
        elif name in HEAD and value.ndim == len(expected):
            fit.skipped[their_roles[role]] = (
                f"{len(value)} classes in the file, {expected[0]} in the network, whose head is reinitialized"
            )
            fit.missing.append(name)
        else:
            raise WeightsError(
                f"weights {path}: {file_names[their_roles[role]]} is {tuple(value.shape)}, expected "
                f"{tuple(expected)}; the file looks like {describe(theirs)}, the network is "
                f"{describe(ours)}; create it with the file's architecture, depth, width and temporal kernels"
            )
    for role, name in their_roles.items():
        if role not in our_roles and not _is_counter(name):
            fit.skipped[name] = "no such tensor in the network"
    fit.fraction = sum(map(_in_backbone, fit.values)) / max(
        sum(map(_in_backbone, ours)), sum(map(_in_backbone, theirs)), 1
    )
    return fit


def _check_fit(
    fit: _Fit, source: str, target: str, file_names: dict[str, str], min_fraction: float, strict: bool
) -> None:
    head = next((reason for name, reason in fit.skipped.items() if name in HEAD), None)
    if strict and head:
        raise WeightsError(f"weights {source}: {head}; expected as many (MODEL.NUM_CLASSES)")
    if strict and fit.moved:
        raise WeightsError(
            f"weights {source} are of another shortcut than {target}: {fit.moved[0]} has another place; set "
            "MODEL.ARCH to the file's"
        )
    if fit.fraction < min_fraction or (strict and (fit.missing or fit.skipped)):
        lacks = f"; it lacks {len(fit.missing)} tensors, {fit.missing[0]} first" if fit.missing else ""
        unknown = [file_names[name] for name in fit.skipped if name not in HEAD]
        unused = f"; {len(unknown)} of its tensors have no place, {unknown[0]} first" if unknown else ""
        expected = "all" if strict else f"at least {100 * min_fraction:.0f} %"
        raise WeightsError(
            f"weights {source} fit {100 * fit.fraction:.1f} % of the tensors of {target}, expected "
            f"{expected}{lacks}{unused}; set architecture and depth (MODEL.ARCH, RESNET.DEPTH) to the file's"
        )


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _in_backbone(name: str) -> bool:
    return name not in HEAD and not _is_counter(name)


def read_weights(path: str | os.PathLike[str], averaged: bool = True) -> Weights:
    """Return the tensors of a .pth, .pyth, .pt or .safetensors file, on the CPU; with `averaged` their moving
    average, if the file has one. Raises WeightsError.
    """
    contents = read_file(path)
    states = (AVERAGE, *STATES) if averaged else STATES
    state = next((contents[key] for key in states if isinstance(contents.get(key), Mapping)), contents)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    _check_tensors(str(path), tensors)
    if not tensors:
        raise WeightsError(
            f"weights {path} hold no tensors (but {_some(list(map(str, contents)))}); expected a state dict, "
            f"or one under {_some(list(STATES))}"
        )
    info = {
        key: value for key, value in contents.items() if value is not state and not isinstance(value, Tensor)
    }
    names = info.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        names = []
    return Weights(str(path), tensors, [str(name) for name in names], info)


def _check_names(path: str | os.PathLike[str], contents: Mapping[Any, Any]) -> None:
    for name in contents:
        if not isinstance(name, str) or len(name) > LONGEST_NAME:
            shown = f"a text of {len(name)} characters" if isinstance(name, str) else type(name).__name__
            raise WeightsError(
                f"weights {path} hold a name that is {shown}; expected texts like conv1.weight"
            )


def _check_tensors(path: str, tensors: Mapping[Any, Any]) -> None:
    """Raise WeightsError if a name is not text, or a tensor is not an ordinary one with its values."""
    _check_names(path, tensors)
    for name, tensor in tensors.items():
        kind = (
            f"a {type(tensor).__name__}" if not isinstance(tensor, Tensor)
            else "nested" if tensor.is_nested
            else "quantised" if tensor.is_quantized
            else "sparse" if tensor.layout is not torch.strided
            else "without values (on the meta device)" if tensor.is_meta
            else ""
        )  # fmt: skip
        if kind:
            raise WeightsError(
                f"weights {path}: {name} is {kind}; expected a dense tensor; convert it, and save it again"
            )


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the contents of a file written by torch.save or safetensors, detected by its first bytes. Raises
    WeightsError.

    Tensors of a safetensors file are under "model_state", next to its JSON metadata.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise WeightsError(f"weights {path} are no regular file; expected a file of tensors")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if start[8:] == b"{":
            return _read_safetensors(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the errors below cover PyTorch's warnings about foreign files
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise WeightsError(
            f"weights {path} are damaged or hold more than tensors, numbers and "
            f"texts{f' ({asked[1]})' if asked else ''}, and were not loaded, since loading could run code; "
            "expected a file of tensors"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"weights {path} cannot be read ({error.strerror or error}); correct the path"
        ) from error
    except Exception as error:  # damaged bytes can make PyTorch's reader fail in any way
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise WeightsError(
            f"weights {path} cannot be read ({reason}); the file may be cut short: copy it again, or take "
            "another one"
        ) from error
    if not isinstance(contents, dict):
        raise WeightsError(
            f"weights {path} hold a {type(contents).__name__}; expected a state dict, or one under "
            f"{_some(list(STATES))}"
        )
    _check_names(path, contents)
    return contents


def _read_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise WeightsError(
            f"weights {path} are in the safetensors format, which needs a package: pip install safetensors"
        ) from error
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            contents: dict[str, Any] = {"model_state": tensors}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    for key, text in metadata.items():
        try:
            contents.setdefault(key, json.loads(text))
        except (ValueError, RecursionError):
            contents.setdefault(key, text)
    return contents
