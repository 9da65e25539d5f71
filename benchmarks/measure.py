"""Fair timing: both sides of a ratio in one run, taking turns, beside the rate of a plain matrix product."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffpolicy_rl.nets.linear import plain_fp32
from diffpolicy_rl.training.threads import torch_threads

Figures = dict[str, float]


def take_turns(sides: Mapping[str, Callable[[], object]], repeats: int) -> Figures:
    """Median seconds of each side; they run in turn, so that what else the machine does hits all alike."""
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def several(run: Callable[[], object], calls: int) -> Callable[[], None]:
    """The same several times; no result is kept, because fresh memory for the next would be timed too."""

    def repeated() -> None:
        for _ in range(calls):
            run()

    return repeated


def with_plain_fp32(run: Callable[[], object]) -> Callable[[], object]:
    """The same work with torch's own choice of fp32 kernels, as a program has it that does not choose."""

    def plain() -> None:
        with plain_fp32():
            run()

    return plain


def with_either_kernels(sides: Mapping[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Sides with torch's own choice of fp32 kernels, and, named ``same_gemm``, with ours.

    A ratio to the latter holds what the code alone gains.
    """
    plain = {name: with_plain_fp32(side) for name, side in sides.items()}
    return plain | {f"{name}_same_gemm": side for name, side in sides.items()}


def milliseconds(sides: Mapping[str, Callable[[], object]], calls: int, repeats: int) -> Figures:
    """Milliseconds of one of the so many calls that every side makes in its turn."""
    return {f"{name}_ms": 1e3 * seconds / calls for name, seconds in take_turns(sides, repeats).items()}


def ratios(figures: Figures, pairs: Iterable[tuple[str, str]]) -> Figures:
    """How many times longer the first of each pair takes."""
    return {f"{slow}/{fast}": figures[f"{slow}_ms"] / figures[f"{fast}_ms"] for slow, fast in pairs}


def against_textbook(
    ours: Callable[[], object], textbook: Callable[[], object], repeats: int, calls: int = 1
) -> Figures:
    """Milliseconds per call of both sides, and how many times longer the textbook's takes, with either kernels."""
    others = with_either_kernels({"textbook": several(textbook, calls)})
    figures = milliseconds({"ours": several(ours, calls)} | others, calls, repeats)
    return figures | ratios(figures, [(other, "ours") for other in others])


def gemm_floor(run: Callable[[], object], rows: int, precision: str, turns: int = 5) -> Figures:
    """How long the matrix products of a call take by themselves, and how many times longer the call takes.

    Their rate is that of (rows, 512) @ (512, 512), in turn with the call.
    """
    a, b = torch.randn(rows, 512), torch.randn(512, 512)
    if precision == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
    work, flops = 2 * rows * 512 * 512, product_flops(run)
    calls = math.ceil(flops / work)
    seconds = take_turns({"ours": run, "gemm": several(lambda: torch.mm(a, b), calls)}, turns)
    floor = seconds["gemm"] * flops / (calls * work)
    return {"gemm_floor_ms": 1e3 * floor, "ours/gemm_floor": seconds["ours"] / floor}


def product_flops(run: Callable[[], object]) -> int:
    """The arithmetic of a call's matrix products, counted as they are called."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _packed_flops})
    with counter:
        run()
    return counter.get_total_flops()


def _packed_flops(x_shape: Sequence[int], *rest: object, out_shape: Sequence[int]) -> int:
    """Arithmetic of a product with a weight in oneDNN's order, which torch's counter does not know."""
    return 2 * math.prod(out_shape) * x_shape[-1]


def gemm_rates(threads: int, repeats: int) -> Figures:
    """fp32 GFLOP/s of (1000, 512) @ (512, 512), as the updates do it, with our routing and with torch's own."""
    a, b = torch.randn(1000, 512), torch.randn(512, 512)

    def products() -> None:
        for _ in range(20):
            torch.mm(a, b)

    with torch_threads(threads):
        seconds = take_turns({"ours": products, "plain": with_plain_fp32(products)}, repeats)
    work = 20 * 2 * 1000 * 512 * 512 / 1e9
    return {f"gemm_gflops_{name}": work / value for name, value in seconds.items()}
