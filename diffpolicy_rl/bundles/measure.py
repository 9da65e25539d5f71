"""What a bundle says about its own graphs: parity with torch, and latency."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffpolicy_rl.bundles.examples import Arrays, bundle_answers, errors, random_inputs, torch_answers
from diffpolicy_rl.bundles.graph import ACTIONS, NOISE, Deployment
from diffpolicy_rl.runtime.bundle import Bundle
from diffpolicy_rl.runtime.metrics import quantiles
from diffpolicy_rl.training.run import machine

TOLERANCE = 1e-5  # of every output, in normalised units
ROWS = 256
_BATCH = 64
_SEED = 0
_WARM_UP, _CALLS, _SECONDS = 50, 1000, 5.0  # fewer calls if they took longer


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far a bundle is from the policy it was made of.

    Attributes:
        inputs: observations and noise, ``ROWS`` of them.
        answers: torch's, in float32.
        report: what goes into ``parity.json``.
    """

    inputs: Arrays
    answers: Arrays
    report: dict[str, Any]


def measure_parity(deployment: Deployment, bundle: Bundle) -> Parity:
    """Compare a bundle with its policy in float32 and in float64, and its rows alone with its rows in a batch."""
    inputs = random_inputs(deployment, bundle.manifest.noise, ROWS, _SEED)
    torch32 = torch_answers(deployment, inputs)
    planned = torch32[ACTIONS]
    onnx = bundle_answers(bundle, inputs, planned)
    torch64 = _in_double(deployment, lambda: torch_answers(deployment, inputs, planned))
    few = {name: value[:_BATCH] for name, value in inputs.items()}
    batch = bundle_answers(bundle, few, planned[:_BATCH])
    alone = [
        bundle_answers(bundle, {name: value[i : i + 1] for name, value in few.items()}, planned[i : i + 1])
        for i in range(_BATCH)
    ]
    single = {name: np.concatenate([answer[name] for answer in alone]) for name in batch}
    scale = deployment.action_normalizer.scale.numpy()
    pairs = {
        "onnx_torch": (onnx, torch32),
        "onnx_torch_float64": (onnx, torch64),
        "torch_torch_float64": (torch32, torch64),
        "batch_1_batch_64": (single, batch),
    }
    outputs = {
        name: {pair: _summary(errors(ours[name], theirs[name], name, scale)) for pair, (ours, theirs) in pairs.items()}
        for name in onnx
    }
    units = "actions in normalised units; scores relative to what is above 1"
    report = {"rows": ROWS, "seed": _SEED, "tolerance": TOLERANCE, "units": units, "outputs": outputs}
    return Parity(inputs, torch32, report)


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


def _summary(far: np.ndarray) -> dict[str, float]:
    return {"max": float(far.max()), "p99": float(np.percentile(far, 99))}


def _in_double(deployment: Deployment, ask: Callable[[], Arrays]) -> Arrays:
    """What is answered while all weights are in double precision, which holds every float32 exactly."""
    modules = (deployment.policy, deployment.obs_normalizer, deployment.action_normalizer)
    try:
        for module in modules:
            module.double()
        return ask()
    finally:
        for module in modules:
            module.float()
