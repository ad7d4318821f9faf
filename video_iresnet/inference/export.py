"""Write a trained network as ONNX or as a program of torch.export."""

from __future__ import annotations

import io
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..data.functional import normalize
from ..models import fold_batch_norm
from ..runtime.environment import code_version
from ..runtime.errors import InputError, missing_extra
from .trained import Trained

INPUTS = {"uint8": torch.uint8, "float32": torch.float32}
PRECISIONS = ("float32", "float16", "int8")
ABOUT = "video_iresnet"  # the key of ONNX' metadata_props
ABOUT_FILE = f"{ABOUT}.json"  # of torch.export's extra_files
LARGEST = 2**31 - 1  # bytes of a protocol buffer


class OnClips(nn.Module):
    """(B, 3, T, S, S) clips -> (B, K) logits in float32. Clips of uint8 are normalized, others are taken as
    normalized. `dtype`: the one that the network computes in.
    """

    def __init__(self, trained: Trained, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self.dtype = dtype
        data = trained.cfg.DATA
        self.register_buffer("mean", torch.tensor(data.MEAN).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data.STD).view(3, 1, 1, 1), persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        if clips.dtype == torch.uint8:
            clips = normalize(clips, self.get_buffer("mean"), self.get_buffer("std"))
        logits: Tensor = self.network(clips.to(self.dtype))
        return logits.float()


@dataclass(frozen=True)
class ExportedNetwork:
    """An exported network: the bytes of its file, what the file says about itself, and `logits`, which
    computes with what those bytes were read back as.
    """

    contents: bytes
    about: Mapping[str, Any]
    logits: Callable[[Tensor], Tensor]

    def __str__(self) -> str:
        about = self.about
        return (
            f"{about['format']}, {about['precision']}, {len(self.contents) / 1e6:.1f} MB; "
            f"input: {about['input']}; output: {about['output']}"
        )


def clip_size(trained: Trained) -> tuple[int, int, int]:
    """Return the size (t, h, w) of the clips of the training's test."""
    data = trained.cfg.DATA
    return data.NUM_FRAMES, data.TEST_CROP_SIZE, data.TEST_CROP_SIZE


def export_torch(
    trained: Trained, *, input_type: str = "uint8", precision: str = "float32"
) -> ExportedNetwork:
    """Export to torch.export's .pt2, which `torch.export.load` reads. `input_type`: one of INPUTS.
    `precision`: float32 or float16. Raises InputError.
    """
    if precision == "int8":
        raise InputError("int8 is offered for ONNX alone; name a file that ends in .onnx")
    about = _about(trained, input_type, precision) | {"format": "torch.export"}
    file = io.BytesIO()
    torch.export.save(
        _program(trained, input_type, precision), file, extra_files={ABOUT_FILE: json.dumps(about)}
    )
    read = torch.export.load(io.BytesIO(file.getvalue())).module()
    return ExportedNetwork(file.getvalue(), about, torch.inference_mode()(read))


def export_onnx(
    trained: Trained, *, input_type: str = "uint8", precision: str = "float32"
) -> ExportedNetwork:
    """Export to ONNX. `input_type`: one of INPUTS. `precision`: one of PRECISIONS; int8 is ONNX Runtime's
    dynamic quantization: int8 weights with a scale for each channel, and activations rounded to 8 bits as
    they come, for all convolutions and the classifier.

    Raises InputError if a package is missing, or if the network is too large for one file.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise missing_extra("ONNX", "onnx", error) from error
    program = _program(trained, input_type, precision)
    written = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["clips"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    assert written is not None
    model = written.model_proto
    if model.ByteSize() > LARGEST:
        raise InputError(
            f"the network has {model.ByteSize()} bytes, and an ONNX file at most {LARGEST}; use .pt2"
        )
    _name_batch(model)
    if precision == "int8":
        model = _quantized(model)
    about = _about(trained, input_type, precision)
    about["format"] = f"ONNX (opset {model.opset_import[0].version})"
    onnx.helper.set_model_props(model, {ABOUT: json.dumps(about)})
    onnx.checker.check_model(model, full_check=True)
    contents = model.SerializeToString()
    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])

    def logits(clips: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])

    return ExportedNetwork(contents, about, logits)


def _program(trained: Trained, input_type: str, precision: str) -> ExportedProgram:
    """Return the network, batch normalization folded, as a graph for batches of any size."""
    network = fold_batch_norm(trained.network).to(memory_format=torch.contiguous_format)
    dtype = torch.float16 if precision == "float16" else torch.float32
    clips = torch.zeros(2, 3, *clip_size(trained), dtype=INPUTS[input_type])
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(
            OnClips(trained, network, dtype).eval(), (clips,), dynamic_shapes=({0: batch},)
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _name_batch(model: Any) -> None:
    """Name the first dimension of the input and the output of an ONNX model; its symbol is a number."""
    graph = model.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == symbol:
                size.dim_param = "batch"


def _quantized(model: Any) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Weights of uint8: those of int8 took twice the time here, and some processors saturate their sums.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        logging.disable(logging.WARNING)  # advice about preparation that this graph has had
        try:
            quantize_dynamic(model, path, per_channel=True, weight_type=QuantType.QUInt8)
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(path)


def _about(trained: Trained, input_type: str, precision: str) -> dict[str, Any]:
    """Return what a file says about itself: how clips are made, and what comes out."""
    cfg, data = trained.cfg, trained.cfg.DATA
    size = f"(batch, 3, {', '.join(map(str, clip_size(trained)))})"
    if input_type == "uint8":
        clips = f"clips {size} of uint8, RGB, 0 to 255; normalization is inside"
    else:
        clips = f"clips {size} of float32, RGB, (value / 255 - mean) / std"
    return {
        "network": str(trained),
        "input_type": input_type,
        "input": clips,
        "output": f"logits (batch, {cfg.MODEL.NUM_CLASSES}) of float32"
        + (", each the logarithm of the odds of its class (sigmoid)" if data.MULTI_LABEL else ""),
        "precision": precision,
        "mean": list(data.MEAN),
        "std": list(data.STD),
        "num_frames": data.NUM_FRAMES,
        "sampler": data.SAMPLER,
        "sampling_rate": data.SAMPLING_RATE,
        "target_fps": data.TARGET_FPS,
        "short_side": data.TEST_SHORT_SIDE or data.TEST_CROP_SIZE,
        "crop_size": data.TEST_CROP_SIZE,
        "clips": cfg.TEST.NUM_ENSEMBLE_VIEWS,
        "crops": cfg.TEST.NUM_SPATIAL_CROPS,
        "class_names": trained.class_names,
        "code": code_version(),
    }
