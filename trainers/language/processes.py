"""The processes that share one training run: which one this is, what they agree on, what they add up.

`torchrun` starts them and names them in the environment; without it there is one. They need no common file system:
only the first one writes, and what it decides is told to the others.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # the others wait while the first one tests a model or saves it


@dataclass(frozen=True)
class Processes:
    """This process among those of its run.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        device: where it computes: a GPU of its own where there is one.
    """

    rank: int
    size: int
    device: torch.device

    @staticmethod
    def join() -> Processes:
        """Meet the other processes, once; every further call says the same."""
        rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if size > 1 and not distributed.is_initialized():
            distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
            atexit.register(distributed.destroy_process_group)
        return Processes(rank, size, device)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agree(self, value: T) -> T:
        """What the first process has, for all."""
        if self.size == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told, src=0)
        return told[0]

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors, in place, with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), src=0)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each number over all processes."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, equally many from each, in their order; gradients go back to where rows are from.

        Where gradients are then averaged over the processes, as they are here, a loss over gathered rows has the
        gradient that one process with all rows has.
        """
        if self.size == 1:
            return tensor
        rows: Tensor = _Gather.apply(tensor, self)  # type: ignore[no-untyped-call]
        return rows

    def average_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace each gradient, in place, by its mean over all processes; one that is absent counts as zero."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        together = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        distributed.all_reduce(together)
        parts = torch.split(together / self.size, [p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(part.view_as(parameter))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, processes: Processes) -> Tensor:
        context.processes = processes
        rows = [torch.empty_like(tensor) for _ in range(processes.size)]
        distributed.all_gather(rows, tensor.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Every process has a loss of its own over all rows: a row's gradient is the sum of theirs."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        rank, rows = context.processes.rank, len(total) // context.processes.size
        return total[rank * rows : (rank + 1) * rows], None
