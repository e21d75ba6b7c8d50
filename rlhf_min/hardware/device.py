"""Device, number format, memory allocator, and the seconds that each part of a step takes."""

import ctypes
import time

import torch


def choose_dtype(name: str) -> torch.dtype:
    """--dtype by its name, or auto: bfloat16 where the hardware multiplies it fast, or float32."""
    if name == "auto":
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast or torch.cpu._is_avx512_bf16_supported() else torch.float32
    return getattr(torch, name)


def main_device() -> str:
    """Where models are loaded to: "cuda" (this process's GPU) or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def precise(dtype: torch.dtype) -> torch.dtype:
    """The number format for sums, weights and results: float32, or float64 of a float64 model."""
    return torch.promote_types(dtype, torch.float32)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: fresh pages cost a third of a step's time (docs/LOG.md)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: blocks up to 1 GiB come from the heap
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks


class Clock:
    """Seconds spent in each part of a step: call it with the part's name when the part ends."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, part: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[f"time/{part}"] = self.seconds.get(f"time/{part}", 0.0) + now - self.last
        self.last = now
