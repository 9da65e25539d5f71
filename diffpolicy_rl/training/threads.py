"""Explicit thread counts, the fastest exact fp32 matrix product the machine has, and memory that is not given back.

Rollouts run on one torch thread: a second one spins between the small products and slows the physics threads down.
Updates use every core.
"""

import contextlib
import ctypes
import time
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run a block on this many torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def outpaced_by_one(count: int) -> bool:
    """Whether this many torch threads need longer for products than one does, as where other programs take the cores.

    Threads spin while they wait for each other, and one that has lost its core keeps all others waiting.
    """
    matrix = torch.ones(512, 512)
    seconds = []
    for threads in (1, count):
        with torch_threads(threads):
            torch.mm(matrix, matrix)  # starts the threads
            began = time.perf_counter()
            for _ in range(16):
                torch.mm(matrix, matrix)
            seconds.append(time.perf_counter() - began)
    return seconds[1] > seconds[0]


def use_fast_fp32() -> bool:
    """Route fp32 products through oneDNN where that stays fp32 and MKL is slow; returns whether it is in use.

    MKL's kernels reach half the speed of oneDNN's on AMD processors. torch routes to oneDNN when lower precision is
    allowed, which oneDNN uses only on processors with bf16 matrix units; so allow it, and check that nothing was lost.
    """
    matmul = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    if not torch.backends.mkldnn.is_available() or torch.cpu.get_capabilities().get("amx_bf16", True):
        return False
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ b.double()
    if ((a @ b - exact).abs().max() / exact.abs().max()).item() < 1e-5:
        return True
    matmul.fp32_precision = before
    return False


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor; returns whether it does.

    By default it hands blocks of megabytes back at once, and every activation of an update touches fresh pages.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    map_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, at most 32 MiB, and M_TRIM_THRESHOLD
    return bool(mallopt(map_threshold, 32 * 2**20)) and bool(mallopt(trim_threshold, 2**30))
