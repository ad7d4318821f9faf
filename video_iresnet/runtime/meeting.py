"""How the processes of a group find each other, within a time and with a name for each that does not come."""

from __future__ import annotations

import os
import platform
import socket
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore

from .errors import InputError, reason

# From the start of a process until all have come and have added up a number: the machines of a cluster do not
# start at once, and imports can be slow.
PATIENCE = timedelta(minutes=5)
# Of the store and of collectives after that; PyTorch's own default.
LATER = timedelta(minutes=30)


class Meeting:
    """The meeting of `size` processes by way of a store, within `patience`. Each error is an InputError.

    torchrun keeps a store when it restarts processes, so words of dead ones are in it too. The main process
    therefore gives a new name to all that answer it, and the group uses the keys under this name alone.
    """

    def __init__(self, store: Any, rank: int, size: int, patience: timedelta = PATIENCE) -> None:
        self.rank = rank
        self.size = size
        self.patience = patience
        self._deadline = time.monotonic() + patience.total_seconds()
        name = uuid.uuid4().hex if rank == 0 else self._ask(store)
        self.store = PrefixStore(name, store)
        if rank == 0:
            self._until(lambda: self._answered(store, name))
        self.wait("start")

    def wait(self, place: str) -> None:
        """Tell the others that this process is at a place in the code, and wait for them."""
        try:
            self.store.set(f"{place} {self.rank}", platform.node())
            self.store.add(place, 1)
            if not self._until(lambda: self.store.add(place, 0) == self.size):
                raise self._absence(self._lacking(place))
        except dist.DistError as error:
            raise InputError(f"the main process ended before all processes met ({reason(error)})") from error

    def form_group(self, backend: str, device: torch.device) -> None:
        """Form the default process group and add up a number on the device, as a check of the network."""
        try:
            dist.init_process_group(
                backend, store=self.store, rank=self.rank, world_size=self.size, timeout=self.patience
            )
            self.wait("sum")
            total = torch.ones(1, device=device)
            work = dist.all_reduce(total, async_op=True)
            if not self._until(work.is_completed):
                raise RuntimeError(f"no answer within {_seconds(self.patience)}")
            work.wait()
        except RuntimeError as error:
            raise InputError(
                f"process {self.rank} on {platform.node()} met all others but cannot add up a number with "
                f"them by {backend} ({reason(error)}); check the network between the hosts, and "
                f"{backend.upper()}_SOCKET_IFNAME"
            ) from error
        set_timeout(LATER)

    def _until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; returns whether it came true in time."""
        while not condition():
            if time.monotonic() > self._deadline:
                return False
            time.sleep(0.05)
        return True

    def _lacking(self, place: str) -> list[int]:
        """Return the ranks of the processes that have not come to a place."""
        return [rank for rank in range(self.size) if not self.store.check([f"{place} {rank}"])]

    def _answered(self, store: Any, name: str) -> bool:
        """Give the name to those who ask for one; returns whether all others have it."""
        others = [rank for rank in self._lacking("start") if rank]
        for rank in others:
            if store.check([f"asks {rank}"]):
                store.set(store.get(f"asks {rank}").decode(), name)
        return not others

    def _ask(self, store: Any) -> str:
        """Return the name of the group, from the living main process."""
        own = uuid.uuid4().hex
        store.set(f"asks {self.rank}", own)
        if not self._until(lambda: bool(store.check([own]))):
            raise InputError(
                f"process 0 did not come within {_seconds(self.patience)} (process {self.rank} on "
                f"{platform.node()} did); look at its output"
            )
        return str(store.get(own).decode())

    def _absence(self, ranks: list[int]) -> InputError:
        """Return an error that names the processes that did not come, with the host of each that started."""
        started = {
            rank: self.store.get(f"start {rank}").decode()
            for rank in range(self.size)
            if self.store.check([f"start {rank}"])
        }
        absent = ", ".join(f"{rank} on {started[rank]}" if rank in started else str(rank) for rank in ranks)
        hosts = ", ".join(sorted({host for rank, host in started.items() if rank not in ranks}))
        return InputError(
            f"of {self.size} processes, these did not come within {_seconds(self.patience)}: {absent} (those "
            f"on {hosts} did); look at their output, or start as many processes as WORLD_SIZE says"
        )


def open_store(rank: int, patience: timedelta = PATIENCE) -> Any:
    """Return the store at MASTER_ADDR and MASTER_PORT, which torchrun's agent or the main process serves.
    Raises InputError if it cannot be reached.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        if not serves:
            _reach(address, port, patience)
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=serves, timeout=patience, multi_tenant=serves, wait_for_workers=False
        )
    except (dist.DistError, OSError) as error:
        raise InputError(
            f"process {rank} on {platform.node()} cannot {'serve' if serves else 'reach'} the store of the "
            f"main process at MASTER_ADDR {address}, MASTER_PORT {port} ({reason(error)}); "
            + ("name a free port" if serves else "look at the output of process 0, or correct the address")
        ) from error
    store.set_timeout(LATER)
    return store


def set_timeout(timeout: timedelta) -> None:
    """Set the timeout of the collectives of the default group."""
    change = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
    change(timeout, dist.group.WORLD)


def _reach(address: str, port: int, patience: timedelta) -> None:
    """Wait until an address takes connections. Raises OSError if it does not. The store itself would write
    lines for each attempt.
    """
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        try:
            socket.create_connection((address, port), max(deadline - time.monotonic(), 1)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _seconds(time: timedelta) -> str:
    return f"{time.total_seconds():.0f} s"
