"""Rows of all workers in one tensor, through which gradients flow back to the worker that made them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    """Workers of the process group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherRows(torch.autograd.Function):
    """All workers' rows, interleaved: row i of worker r comes to i * W + r, the place it has in the step."""

    @staticmethod
    def forward(context: Any, rows: torch.Tensor) -> torch.Tensor:
        """(b, ...) of each worker to (W * b, ...)."""
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """Gradients (W * b, ...), summed over workers, to those of this worker's rows (b, ...)."""
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank() :: dist.get_world_size()]


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all workers, in the order in which one worker alone would have them.

    Every worker then computes the same loss of all W x b rows. The gradient that reaches a worker's rows is the sum
    over all workers' losses, so after the usual average over workers the parameters get the gradient that one worker
    with the whole batch would compute. Without a process group the rows themselves are returned.

    Args:
        rows: (b, ...), equally many and of one shape on every worker; integers and bools carry no gradient.

    Returns:
        (W * b, ...).
    """
    if world_size() == 1:
        return rows
    if rows.dtype == torch.bool:
        return gather_rows(rows.to(torch.uint8)).bool()
    gathered: torch.Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered
