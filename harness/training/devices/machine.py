"""Decides device, precision, threads and memory settings of a process that trains; no other module does.

`train.py`, `evaluate.py` and `harness.export` call `resolve_machine` or `machine_at_hand`. Each process that
trains calls `prepare_process` once, before its first tensor.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from dataclasses import dataclass

import torch
from torch import nn

from harness.config.schema import TrainerConfig
from harness.errors import ConfigError

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # from glibc's malloc.h


@dataclass(frozen=True)
class Machine:
    """The resolved device and precision of a run."""

    device: torch.device
    precision: str  # "fp32", "bf16" or "fp16"

    @property
    def lightning_precision(self) -> str:
        return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[self.precision]

    def autocast(self) -> torch.autocast:
        """Return the context in which forward passes run outside the Trainer."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")

    def describe(self) -> dict[str, str]:
        is_cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name() if is_cuda else torch.cpu.get_capabilities().get("cpu_name")
        return {
            "device": self.device.type,
            "device_name": str(name or platform.machine()),
            "precision": self.precision,
            "threads": str(torch.get_num_threads()),
            "memory_format": "channels_last",
        }


def prepare_process(threads: int | None, keep_memory: bool) -> None:
    """Set threads, memory allocation and precision of matrix products for this whole process.

    Called once, before the first tensor.

    Args:
        threads: intra-op CPU threads; None keeps the number that torch has set.
        keep_memory: keep large blocks in the process, see :func:`keep_large_blocks`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if keep_memory:
        keep_large_blocks()
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA; CPUs keep full fp32
    if not torch.cuda.is_available():
        # Otherwise torch 2.14 looks for NVIDIA's library in every optimiser step, which takes a fifth of the
        # time of a linear probe.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def keep_large_blocks() -> bool:
    """Stop glibc from returning large tensors' memory to the system after every step.

    The next step would get it back page by page, with a page fault for each.

    Returns:
        True if the setting took effect; False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {M_MMAP_MAX: 0, M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: (1 << 31) - 1, M_TOP_PAD: 1 << 26}
    return all(libc.mallopt(option, value) for option, value in settings.items())


def resolve_machine(trainer: TrainerConfig, network: nn.Module | None = None) -> Machine:
    """Return the device and precision of a configuration on this machine, with "auto" resolved.

    Args:
        network: the network that will run there, which can influence the precision that "auto" picks. None
            counts as a network without grouped convolutions.

    Raises:
        ConfigError: this machine lacks the device, or the device does not support the precision.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    wanted = trainer.device
    if wanted == "auto":
        wanted = "cuda" if available["cuda"] else "mps" if available["mps"] else "cpu"
    if not available[wanted]:
        raise ConfigError(f"trainer.device={wanted}: this machine has none; use trainer.device=auto or cpu")
    precision = _best_precision(wanted, network) if trainer.precision == "auto" else trainer.precision
    if precision == "fp16" and wanted == "cpu":
        raise ConfigError("trainer.precision=fp16 is for GPUs: use auto, bf16 or fp32 on a CPU")
    return Machine(torch.device(wanted), precision)


def machine_at_hand(trainer: TrainerConfig, network: nn.Module) -> Machine:
    """Return the device and precision for using a trained model.

    They are those of its training, if this machine has them. Otherwise they are those of "auto", with a
    warning, because metrics at another precision may differ in their last digits.
    """
    try:
        return resolve_machine(trainer, network)
    except ConfigError:
        here = resolve_machine(trainer.model_copy(update={"device": "auto", "precision": "auto"}), network)
    log.warning(
        "the run asked for trainer.device=%s, trainer.precision=%s, which this machine does not have: "
        "its model is used on %s in %s",
        *(trainer.device, trainer.precision, here.device.type, here.precision),
    )
    return here


def check_devices(wanted: int, device: str, num_gpus: int) -> None:
    """Refuse to train on more devices than this machine has.

    Raises:
        ConfigError: there are too few GPUs, or several devices are asked for on MPS.
    """
    if device == "cuda" and wanted > num_gpus:
        raise ConfigError(f"{wanted} devices are to train together, but this machine shows {num_gpus} GPU(s)")
    if device == "mps" and wanted > 1:
        raise ConfigError("mps cannot train on several devices together: use one, or trainer.device=cpu")


def _best_precision(device: str, network: nn.Module | None) -> str:
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # On CPUs with bf16 units, torch 2.14 trains grouped and depthwise convolutions in bf16 at a quarter to
    # three quarters of their speed in fp32 (EfficientNet, MobileNet, RegNetY, ConvNeXt), dense ones faster.
    if (
        device == "cpu"
        and _cpu_has_bf16()
        and not (network is not None and _has_grouped_convolutions(network))
    ):
        return "bf16"
    return "fp32"


def _has_grouped_convolutions(network: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())


def _cpu_has_bf16() -> bool:
    """Tell whether the CPU multiplies bf16 in hardware; emulated bf16 is slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
