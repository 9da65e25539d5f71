"""How long a bundle's graphs take."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffpolicy_rl.bundles.examples import NOISE
from diffpolicy_rl.runtime.bundle import Bundle
from diffpolicy_rl.runtime.metrics import quantiles
from diffpolicy_rl.training.machine import machine

_WARM_UP, _CALLS, _SECONDS = 50, 1000, 5.0  # fewer calls if they took longer


def measure_latency(bundle: Bundle, inputs: Mapping[str, np.ndarray], planned: np.ndarray) -> dict[str, Any]:
    """Milliseconds that one call for one robot takes, of every graph.

    Args:
        bundle: it.
        inputs: observations and noise; the first row is used.
        planned: chunks (B, H, D) to correct and score.
    """
    obs = {port.name: inputs[port.name][:1] for port in bundle.manifest.inputs}
    noise = inputs[NOISE][:1] if NOISE in inputs else None
    calls: dict[str, Callable[[], object]] = {
        "policy": lambda: bundle(obs, noise),
        "residual": lambda: bundle.correct(obs, planned[:1, 0]),
        "score": lambda: bundle.score(obs, planned[:1]),
    }
    about = {"device": machine(), "provider": "CPUExecutionProvider", "threads": 1, "batch": 1, "warm_up": _WARM_UP}
    return about | {"graphs": {name: _timed(calls[name]) for name in bundle.manifest.graphs}}


def _timed(call: Callable[[], object]) -> dict[str, float]:
    for _ in range(_WARM_UP):
        call()
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _CALLS and time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begin))
    spread = {f"{name}_ms": round(value, 4) for name, value in quantiles(times).items()}
    return spread | {"max_ms": round(max(times), 4), "n": len(times)}
