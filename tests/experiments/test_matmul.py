"""The yardstick of `make bench` ends, whatever the processor lacks."""

from __future__ import annotations

import pytest
import torch

from experiments.performance import matmul


def test_a_product_that_would_take_minutes_is_measured_on_smaller_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides: list[int] = []

    def slow(device: torch.device, dtype: torch.dtype, side: int, repeats: int) -> list[float]:
        sides.append(side)
        return [2 * side**3 / 1e8] * repeats  # 0.1 GFLOP/s: 172 s for a product of 2048

    monkeypatch.setattr(matmul, "_seconds", slow)
    assert matmul.matmul_flops(torch.device("cpu"), torch.bfloat16) == pytest.approx(1e8)
    assert 2 * sides[-1] ** 3 / 1e8 * 8 <= matmul.LIMIT_S
    assert max(sides) < 2048


def test_a_fast_processor_is_measured_on_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []
    monkeypatch.setattr(matmul, "_seconds", lambda *a: sides.append(a[2]) or [2 * a[2] ** 3 / 1e11])
    matmul.matmul_flops(torch.device("cpu"), torch.float32)
    assert sides[-1] == 2048
