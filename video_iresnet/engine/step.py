"""One optimization step as an object."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..data.loader import ClipBatch
from ..models import ResNet
from ..runtime.devices import Copies
from ..runtime.distributed import Processes
from ..runtime.seeding import Stream, generator, integer_seed
from .average import Average
from .batchnorm import Statistics, share_buffers
from .checkpoint import load_model_state
from .optim import Limits, load_momenta, set_learning_rate, set_training, skip_update
from .precision import Precision
from .schedule import Schedule
from .tasks import Task


class Outcome(NamedTuple):
    """What a step tells, on the device: the task's sums over the batch, the L2 norm of the gradient, and
    whether the loss or the gradient is not finite. The sums of such a step are zero.
    """

    sums: Tensor
    gradient_norm: Tensor
    is_bad: Tensor


class SideBySide(nn.ModuleList):
    """Networks that see the same inputs."""

    def forward(self, inputs: Tensor) -> None:
        for network in self:
            network(inputs)


def _update_bn_stats() -> Callable[..., None]:
    """Return fvcore's function. Importing it warns of torch.jit, which it does not use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn.precise_bn import update_bn_stats
    return update_bn_stats  # type: ignore[no-any-return]


class Step:
    """Forward pass, loss, backward pass and update. Owns the network and the optimizer, and their state.

    `accumulation`: number of equal parts of a batch that pass one after the other; normalization sees each
    part alone. `average`: a moving average of the network. `frozen`: names of modules that stay in evaluation
    mode. `keep_statistics`: restore the running statistics after a step that is not finite.
    """

    def __init__(
        self,
        network: ResNet,
        optimizer: Optimizer,
        schedule: Schedule,
        task: Task,
        *,
        seed: int,
        processes: Processes,
        precision: Precision | None = None,
        limits: Limits = Limits(),  # noqa: B008
        accumulation: int = 1,
        average: Average | None = None,
        frozen: Sequence[str] = (),
        keep_statistics: bool = False,
        bf16_allreduce: bool = False,
        static_graph: bool = False,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.schedule = schedule
        self.task = task
        self.seed = seed
        self.rank = processes.rank
        self.device = processes.device
        self.precision = precision or Precision(processes.device.type)
        self.limits = limits
        self.accumulation = accumulation
        self.average = average
        self.frozen = frozen
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.needs_scaler)
        self._copy = Copies(processes.device)
        self._statistics = Statistics(network) if keep_statistics else None
        self._model: nn.Module = network
        if processes.size > 1:
            with warnings.catch_warnings():
                # Its successor in PyTorch 2.14 would replace the statistics at the start.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self._model = DistributedDataParallel(
                    network,
                    gradient_as_bucket_view=True,
                    broadcast_buffers=False,  # share_statistics does it, once an epoch
                    static_graph=static_graph and accumulation == 1,
                )
            if bf16_allreduce:
                self._model.register_comm_hook(None, bf16_compress_hook)

    def __call__(self, batch: ClipBatch, done: int, progress: float) -> Outcome:
        """Train on a batch, without waiting for the device.

        `done`: number of steps before this one; `progress`: the same as a fraction of all steps.
        """
        set_learning_rate(self.optimizer, self.schedule(progress))
        torch.manual_seed(integer_seed(self.seed, Stream.STEP, done, self.rank))
        labels = self._copy(batch.labels)
        clips = self.task.normalize(self._copy(batch.clips))
        rng = generator(self.seed, Stream.MIXING, done, self.rank)
        inputs, targets = self.task.targets(clips, labels, rng)
        self.optimizer.zero_grad(set_to_none=True)
        n = self.accumulation
        parts = list(zip(inputs.chunk(n), targets.chunk(n), labels.chunk(n), strict=True))
        if self._statistics:
            self._statistics.keep()
        sums = []
        for number, part in enumerate(parts, start=1):
            with self._gradients_reduced(number == len(parts)):
                loss, part_sums = self._forward(*part)
                fraction = len(part[0]) / len(inputs)
                self._scaler.scale(loss * fraction).backward()  # type: ignore[no-untyped-call]
            sums.append(part_sums)
        return self._update(torch.stack(sums).sum(0))

    def _gradients_reduced(self, now: bool) -> AbstractContextManager[Any]:
        """Average the gradients over the processes in the last part of a batch alone."""
        is_shared = isinstance(self._model, DistributedDataParallel)
        return self._model.no_sync() if is_shared and not now else nullcontext()  # type: ignore[operator]

    def _forward(self, inputs: Tensor, targets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a part of a batch, and the task's sums over it."""
        with self.precision.autocast():
            outputs = self._model(inputs)
        outputs = outputs.float()
        loss = self.task.loss(outputs, targets)
        return loss, self.task.sums(loss.detach(), outputs.detach(), labels)

    def _update(self, sums: Tensor) -> Outcome:
        """Update the weights, unless the gradient is not finite, which is decided on the device. All
        processes have the same gradient, so they skip together.
        """
        self._scaler.unscale_(self.optimizer)
        norm = self.limits(self.network.parameters())
        is_bad = ~sums.isfinite().all()
        if not self._scaler.is_enabled():  # else such a step only tells the scaler to lower its scale
            is_bad = is_bad | ~norm.isfinite()
        skip_update(self.optimizer, ~norm.isfinite())
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._statistics:
            self._statistics.restore(is_bad)
        if self.average:
            self.average.update(self.network)
        return Outcome(torch.where(is_bad, 0.0, sums), norm, is_bad)

    def train(self) -> None:
        """Set the network to training mode, except its frozen modules."""
        set_training(self.network, self.frozen)

    @property
    def tested(self) -> ResNet:
        """The network that is validated and tested: the average, where there is one."""
        return self.average.network if self.average else self.network

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def networks(self) -> list[ResNet]:
        """Return the network and, where there is one, its average."""
        return [self.network, self.average.network] if self.average else [self.network]

    def share_statistics(self) -> None:
        """Broadcast the running statistics of the main process; see share_buffers."""
        for network in self.networks():
            share_buffers(network)

    def estimate_statistics(self, batches: Iterator[ClipBatch], num_batches: int) -> None:
        """Replace the running statistics by those of `num_batches` batches; see fvcore's update_bn_stats."""
        counters = [b for network in self.networks() for b in network.buffers() if b.dtype == torch.int64]
        counts = [counter.clone() for counter in counters]
        for network in self.networks():
            set_training(network, self.frozen)
        inputs = (self.task.normalize(self._copy(batch.clips)) for batch in batches)
        with self.precision.autocast():
            _update_bn_stats()(SideBySide(self.networks()), inputs, num_batches)
        for counter, count in zip(counters, counts, strict=True):  # these batches were no steps
            counter.copy_(count)
        self.share_statistics()

    def advise_on_memory(self, batch: ClipBatch) -> str:
        """Return what to change, as one line, if the memory does not suffice for a batch, by trying smaller
        parts of it.
        """
        size = len(batch.clips) // self.accumulation
        shape = "x".join(str(n) for n in batch.clips.shape[2:])
        message = f"{self.device} has not enough memory for {size} clips of {shape} at a time"
        self._model, fitting = self.network, size // 2
        while fitting and not self._fits(batch, fitting):
            fitting //= 2
        if not fitting:
            return f"{message}, nor for one; take a smaller network or clip, or MODEL.ACT_CHECKPOINT True"
        return (
            f"{message}, but for {fitting}: set TRAIN.ACCUMULATION {len(batch.clips) // fitting}, a smaller "
            "TRAIN.BATCH_SIZE, or MODEL.ACT_CHECKPOINT True"
        )

    def _fits(self, batch: ClipBatch, size: int) -> bool:
        """Whether the memory suffices for `size` clips of the batch at a time."""
        try:
            self.optimizer.zero_grad(set_to_none=True)
            labels = self._copy(batch.labels[:size])
            clips = self.task.normalize(self._copy(batch.clips[:size]))
            inputs, targets = self.task.targets(clips, labels, generator(self.seed, Stream.MIXING))
            self._forward(inputs, targets, labels)[0].backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            return False
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state under PySlowFast's names."""
        state = {"model_state": self.network.state_dict(), "optimizer_state": self.optimizer.state_dict()}
        if self._scaler.is_enabled():
            state["scaler_state"] = self._scaler.state_dict()
        return state | (self.average.state_dict() if self.average else {})

    def load_state_dict(self, state: dict[str, Any], source: object) -> None:
        """Raises WeightsError or InputError, naming `source`, if this is the state of another network."""
        load_model_state(self.network, state["model_state"], str(source))
        load_momenta(self.optimizer, state["optimizer_state"])
        if "scaler_state" in state:
            self._scaler.load_state_dict(state["scaler_state"])
        if self.average:
            self.average.load_state_dict(state, str(source))
