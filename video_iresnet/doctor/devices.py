"""GPUs, cuDNN, half precision, workers; one training step of a tiny network on each device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ..engine.precision import WRONG_CUDNN, cudnn_version, problems, supports
from ..engine.probe import convolutions, probe
from ..models import ResNet, create_model
from ..runtime.devices import allow_tf32
from ..runtime.environment import device_name
from .finding import OK, PROBLEM, WARNING, Check, Finding

CPU = torch.device("cpu")
NODES = "nvidia[0-9]*"  # in /dev, where the kernel's driver sees a GPU
DEV = Path("/dev")
CLIP = (2, 3, 8, 56, 56)
SAMPLE_BYTES = 2**25  # that a worker sends
SLOWEST_WORKER = 60.0  # seconds
LARGEST_DIFFERENCE = 1e-3  # of a loss on a GPU from the CPU's


def all_devices() -> list[torch.device]:
    """Return the CPU and the GPUs."""
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [CPU, *(torch.device("cuda", i) for i in range(number))]


def gpus(folder: Path) -> Iterator[Finding]:
    """Whether PyTorch sees the GPUs."""
    build = f"PyTorch for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch for CPUs alone"
    if torch.cuda.is_available():
        for device in all_devices()[1:]:
            properties = torch.cuda.get_device_properties(device)
            gib = properties.total_memory / 2**30
            yield Finding(f"{device}", OK, f"{properties.name}, {gib:.0f} GiB; {build}")
    elif any(DEV.glob(NODES)):
        remedy = "update the driver, or install a PyTorch for its CUDA: pytorch.org/get-started"
        yield Finding("GPU", PROBLEM, f"one is there, but {build} cannot use it", remedy)
    else:
        remedy = "a CPU does for the demo and small sets; in Docker, add --gpus all to use a GPU"
        yield Finding("GPU", WARNING, f"none; {build}", remedy)


def cudnn(folder: Path) -> Iterator[Finding]:
    """Releases of cuDNN that compute 3D convolutions in half precision wrongly."""
    version = cudnn_version()
    name = f"{version // 10000}.{version // 100 % 100}.{version % 100}" if version else "none"
    if not torch.cuda.is_available():
        yield Finding("cuDNN", OK, f"{name}; only GPUs use it")
    elif version in WRONG_CUDNN:
        found = f"{name} computes 3D convolutions in half precision wrongly, or PyTorch avoids it slowly"
        remedy = "install a PyTorch with cuDNN 9.15 or later, or set TRAIN.HALF_PROBLEMS float32"
        yield Finding("cuDNN", WARNING, found, remedy)
    else:
        yield Finding("cuDNN", OK, name)


def half_precision(folder: Path) -> Iterator[Finding]:
    """Whether the convolutions of a tiny network are right in bfloat16, and not slow."""
    for device in all_devices():
        yield bfloat16(device)


def bfloat16(device: torch.device) -> Finding:
    """Compare the convolutions of a tiny network in bfloat16 with float32."""
    title = f"bfloat16 on {device}"
    dtype, off = torch.bfloat16, "leave TRAIN.MIXED_PRECISION False"
    if not supports(device, dtype):
        return Finding(title, WARNING, f"{device_name(device)} has no instructions for it", off)
    network = tiny_network()
    results = probe(network, convolutions(network, CLIP, training=True), device, dtype)
    exact, half = (sum(result.seconds[i] * len(result.layer.names) for result in results) for i in (0, 1))
    bad = problems(results, dtype)
    if not bad:
        return Finding(title, OK, f"right, and takes {half / exact:.2f} of the time of float32")
    found = f"{len(bad)} convolutions of a tiny network are wrong or slow: {next(iter(bad.values()))}"
    return Finding(title, WARNING, found, f"set TRAIN.HALF_PROBLEMS float32, or {off}")


def training_step(folder: Path) -> Iterator[Finding]:
    """One step of a tiny network on each device, whose losses agree."""
    allow_tf32(False)
    expected = losses(CPU)
    for device in all_devices():
        found = losses(device)
        text = f"loss {found[0]:.4f}, then {found[1]:.4f}"
        difference = max(abs(a - b) for a, b in zip(found, expected, strict=True))
        if not all(map(math.isfinite, found)) or found[1] >= found[0]:
            remedy = "install PyTorch again; if it remains, the device or its driver is damaged"
            yield Finding(f"training on {device}", PROBLEM, f"{text}: it does not learn", remedy)
        elif difference > LARGEST_DIFFERENCE:
            remedy = "update the driver and PyTorch; the device may be damaged"
            yield Finding(
                f"training on {device}", PROBLEM, f"{text}; the CPU's differ by {difference:.2g}", remedy
            )
        else:
            yield Finding(f"training on {device}", OK, text)


def tiny_network() -> ResNet:
    """iR3D-18 with a quarter of its channels, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model("iresnet", 18, width=16, num_classes=4)


def losses(device: torch.device) -> tuple[float, float]:
    """Return the loss on two clips before and after a step of gradient descent, in float32."""
    network = tiny_network().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    clips = torch.randn(CLIP, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.tensor([1, 3], device=device)
    before = F.cross_entropy(network(clips), labels)
    before.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    with torch.no_grad():
        after = F.cross_entropy(network(clips), labels)
    return before.item(), after.item()


class _Sample(Dataset[Tensor]):
    """One large sample in shared memory."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Tensor:
        sample = torch.ones(SAMPLE_BYTES, dtype=torch.uint8)
        sample.share_memory_()  # type: ignore[no-untyped-call]
        return sample


def worker(folder: Path) -> Iterator[Finding]:
    """Whether a worker can send a batch through shared memory."""
    try:
        loader = DataLoader(_Sample(), batch_size=None, num_workers=1, timeout=SLOWEST_WORKER)
        (sample,) = loader
    except RuntimeError as error:
        remedy = "enlarge /dev/shm (in Docker, --shm-size 8g), or use DATA_LOADER.NUM_WORKERS 0"
        yield Finding("worker", PROBLEM, f"it cannot send a batch: {str(error).splitlines()[-1]}", remedy)
        return
    yield Finding("worker", OK, f"sent {sample.numel() / 2**20:.0f} MiB")


CHECKS: tuple[Check, ...] = (gpus, cudnn, half_precision, training_step, worker)
