"""How far a bundle is from the policy it was made of: for export, where there is torch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffpolicy_rl.bundles.examples import (
    ACTIONS,
    CORRECTED,
    NOISE,
    OBSERVATION,
    SCORE,
    TOLERANCE,
    Arrays,
    answers_alone,
    bundle_answers,
    errors,
    require_close,
)
from diffpolicy_rl.bundles.graph import Deployment, without_noise
from diffpolicy_rl.runtime.bundle import Bundle

ROWS = 256
_BATCH = 64
_SEED = 0


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
    alone = answers_alone(bundle, few, planned[:_BATCH])
    scale = deployment.action_normalizer.scale.numpy()
    pairs = {
        "onnx_torch": (onnx, torch32),
        "onnx_torch_float64": (onnx, torch64),
        "torch_torch_float64": (torch32, torch64),
        "batch_1_batch_64": (alone, batch),
    }
    outputs = {
        name: {pair: _summary(errors(ours[name], theirs[name], name, scale)) for pair, (ours, theirs) in pairs.items()}
        for name in onnx
    }
    units = "actions in normalised units; scores relative to what is above 1"
    report = {"rows": ROWS, "seed": _SEED, "tolerance": TOLERANCE, "units": units, "outputs": outputs}
    return Parity(inputs, torch32, report)


def require_parity(parity: Parity) -> None:
    """Raise BundleError if ``verify`` would not pass the graphs on these inputs."""
    outputs = parity.report["outputs"]
    for pair, theirs in (("onnx_torch", "torch's"), ("batch_1_batch_64", "that of a batch")):
        require_close({name: pairs[pair]["max"] for name, pairs in outputs.items()}, theirs)


def random_inputs(deployment: Deployment, noise: tuple[int, ...] | None, rows: int, seed: int) -> Arrays:
    """Observations as the policy's data has them, and noise, of so many rows."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.randn((rows, *deployment.obs_shape), generator=generator)
    inputs = {OBSERVATION: deployment.obs_normalizer.inverse(unit)}
    if noise is not None:
        inputs[NOISE] = torch.randn((rows, *noise), generator=generator)
    return {name: value.numpy() for name, value in inputs.items()}


@torch.no_grad()
def torch_answers(deployment: Deployment, inputs: Arrays, planned: NDArray[np.float32] | None = None) -> Arrays:
    """What the policy itself gives, in the precision of its weights: actions, and corrected ones and scores if any.

    Args:
        deployment: the policy.
        inputs: observations and noise.
        planned: the chunks that are corrected and scored, by default its own.
    """
    policy, like = deployment.policy, deployment.obs_normalizer.scale
    obs = torch.from_numpy(inputs[OBSERVATION]).to(like)
    noise = [torch.from_numpy(inputs[NOISE]).to(like)] if NOISE in inputs else []
    actions = (policy if noise else without_noise(policy))(obs, *noise)
    chunk = actions if planned is None else torch.from_numpy(planned).to(like)
    found: dict[str, Tensor] = {ACTIONS: actions}
    if policy.per_step:
        found[CORRECTED] = policy.correct(obs, chunk[:, 0])
    if policy.scores:
        found[SCORE] = policy.score(obs, chunk)
    return {name: value.numpy() for name, value in found.items()}


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
