"""What a machine could compute: the yardstick that speeds are held against."""

from __future__ import annotations

import time
from statistics import median

import torch


def matmul_flops(device: torch.device, dtype: torch.dtype, side: int = 2048, repeats: int = 7) -> float:
    """Return the floating-point operations per second of a square matrix product, the median of a few."""
    matrix = torch.rand(side, side, device=device).to(dtype)
    seconds = []
    for _ in range(repeats + 1):
        _synchronise(device)
        started = time.perf_counter()
        matrix @ matrix
        _synchronise(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / median(seconds[1:])  # the first one warms up


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
