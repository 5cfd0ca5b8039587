"""Measures a machine's rate of matrix products (FLOP/s), to which other speeds are related."""

from __future__ import annotations

import time
from statistics import median

import torch

PROBE_SIDE = 256  # of a first product, by which the time of larger ones is estimated before they are tried
LIMIT_S = 20.0  # of one measurement; if it would take longer, smaller matrices are used


def matmul_flops(device: torch.device, dtype: torch.dtype, side: int = 2048, repeats: int = 7) -> float:
    """Return the floating-point operations per second of a square matrix product, the median of a few.

    The matrices are smaller than `side` if the products would take longer than LIMIT_S: on a CPU without
    bf16, they take minutes in bf16.
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
