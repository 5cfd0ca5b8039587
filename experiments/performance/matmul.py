"""What a machine could compute: the yardstick that speeds are held against."""

from __future__ import annotations

import time
from statistics import median

import torch

PROBE_SIDE = 256  # of a product that tells what a larger one would take: a CPU without bf16 takes minutes
LIMIT_S = 20.0  # of one measurement; beyond it a smaller matrix has to do


def matmul_flops(device: torch.device, dtype: torch.dtype, side: int = 2048, repeats: int = 7) -> float:
    """Return the floating-point operations per second of a square matrix product, the median of a few.

    Where they would take longer than LIMIT_S, as of a type that the processor lacks, they are smaller.
    """
    probe = median(_seconds(device, dtype, PROBE_SIDE, 2))
    while side > PROBE_SIDE and probe * (side / PROBE_SIDE) ** 3 * (repeats + 1) > LIMIT_S:
        side //= 2
    return 2 * side**3 / median(_seconds(device, dtype, side, repeats))


def _seconds(device: torch.device, dtype: torch.dtype, side: int, repeats: int) -> list[float]:
    matrix = torch.rand(side, side, device=device).to(dtype)
    seconds = []
    for _ in range(repeats + 1):
        _synchronise(device)
        started = time.perf_counter()
        matrix @ matrix
        _synchronise(device)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]  # the first one warms up


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
