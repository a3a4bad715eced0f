"""Several processes that train one network, each with its share of every batch.

On a shared CPU, processes of one thread beat one process of many threads by far. Processes meet once a step, to
average gradients; threads meet at every operator and wait for the slowest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Team:
    """Process ``rank`` of ``size``. All processes hold the same weights, since all take the same steps."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """True for the process that measures, writes and logs."""
        return self.rank == 0

    def join(self, meeting: Path) -> None:
        """Joins the others through the file ``meeting``, which must be unused."""
        if self.size > 1:
            dist.init_process_group(
                "gloo", init_method=f"file://{meeting.resolve()}", rank=self.rank, world_size=self.size
            )

    def leave(self) -> None:
        """Waits for all and ends the group. Without this, its threads may outlive the interpreter and abort it."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives every process the mean of all gradients, the same bits everywhere, so that weights stay equal."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(
            gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(mean.view(gradient.shape))

    def agree(self, value: float) -> float:
        """Returns the leader's ``value`` in every process."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(told, src=0)
        return told.item()
