"""Averaging of weights and figures over worker processes on one machine."""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


def join(rank: int, workers: int, port: int) -> None:
    """Join the group of workers."""
    if workers > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=workers)


def average(parameters: list[nn.Parameter], figures: Tensor, workers: int) -> Tensor:
    """Average all weights in place and return the sum of the figures over the workers."""
    if workers == 1:
        return figures
    with torch.no_grad():
        buffer = torch.cat([*(p.flatten() for p in parameters), figures])
        dist.all_reduce(buffer)
        offset = 0
        for parameter in parameters:
            part = buffer[offset : offset + parameter.numel()]
            parameter.copy_((part / workers).view_as(parameter))
            offset += parameter.numel()
    return buffer[offset:]


def leave(workers: int) -> None:
    """Wait for all workers and leave the group."""
    if workers > 1:
        dist.barrier()
        dist.destroy_process_group()
