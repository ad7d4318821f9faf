"""One optimization step as an object."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..data.loader import ClipBatch
from ..models import ResNet
from ..runtime.distributed import Processes
from ..runtime.seeding import Stream, generator, integer_seed
from .batchnorm import share_buffers
from .checkpoint import load_model_state
from .optim import load_momenta, set_learning_rate
from .schedule import Schedule
from .tasks import Task


class Step:
    """Forward pass, loss, backward pass and update. Owns the network and the optimizer, and their state."""

    def __init__(
        self,
        network: ResNet,
        optimizer: Optimizer,
        schedule: Schedule,
        task: Task,
        *,
        seed: int,
        processes: Processes,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.schedule = schedule
        self.task = task
        self.seed = seed
        self.rank = processes.rank
        self.device = processes.device
        self._model = DistributedDataParallel(network) if processes.size > 1 else network

    def __call__(self, batch: ClipBatch, done: int, progress: float) -> Tensor:
        """Train on a batch; returns the task's sums over it, without waiting for the device.

        `done`: number of steps before this one; `progress`: the same as a fraction of all steps.
        """
        set_learning_rate(self.optimizer, self.schedule(progress))
        torch.manual_seed(integer_seed(self.seed, Stream.STEP, done, self.rank))
        labels = batch.labels.to(self.device, non_blocking=True)
        clips = self.task.normalize(batch.clips.to(self.device, non_blocking=True))
        inputs, targets = self.task.targets(
            clips, labels, generator(self.seed, Stream.MIXING, done, self.rank)
        )
        outputs = self._model(inputs)
        loss = self.task.loss(outputs, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return self.task.sums(loss.detach(), outputs.detach(), labels)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def share_statistics(self) -> None:
        """Broadcast the running statistics of the main process; see share_buffers."""
        share_buffers(self.network)

    def state_dict(self) -> dict[str, Any]:
        """Return the state under PySlowFast's names."""
        return {"model_state": self.network.state_dict(), "optimizer_state": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any], source: object) -> None:
        """Raises WeightsError or InputError, naming `source`, if this is the state of another network."""
        load_model_state(self.network, state, str(source))
        load_momenta(self.optimizer, state["optimizer_state"])
