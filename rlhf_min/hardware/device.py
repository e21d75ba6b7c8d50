"""Device, number format and memory allocator."""

import ctypes

import torch


def choose_device() -> torch.device:
    """CUDA when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(name: str) -> torch.dtype:
    """--dtype: float32, bfloat16, or auto (bfloat16 where the hardware multiplies it fast)."""
    if name == "auto":
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast or torch.cpu._is_avx512_bf16_supported() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, which asks for the same sizes again.

    By default it returns large blocks to the kernel, and every step pays for fresh pages: a third
    of its time on CPU (docs/LOG.md).  Does nothing under another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: blocks up to 1 GiB come from the heap
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks
