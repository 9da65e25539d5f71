"""LeRobot's checkpoint layout, for what its policy type ``diffusion`` computes: ChiUNet1d over the levels of DDPM.

``config.json``, ``model.safetensors``, and two processors that normalise, each a JSON and a safetensors file. Nothing
of LeRobot is imported; ``benchmarks/lerobot_parity.py`` holds a checkpoint against it where it is installed.
"""

import json
from collections.abc import Iterator
from typing import Any, cast

from safetensors.torch import save
from torch import Tensor

from diffpolicy_rl.bundles.lerobot_weights import weights_of
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.chi_unet1d import GROUPS, ChiUNet1d
from diffpolicy_rl.nets.embeddings import SinusoidalEmbedding
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.policy import GenerativePolicy, SampledPolicy
from diffpolicy_rl.types import DeployedPolicy

_STATE, _ENVIRONMENT, _ACTION = "observation.state", "observation.environment_state", "action"
_NORMALIZATION = dict.fromkeys(("STATE", "ENV", "ACTION"), "MEAN_STD")
_SCHEDULES, _PREDICTIONS = {"cosine": "squaredcos_cap_v2", "linear": "linear"}, {"eps": "epsilon", "x0": "sample"}
_TO_CPU = ("device_processor", {"device": "cpu", "float_dtype": None})
Features = dict[str, dict[str, Any]]
Step = tuple[str, dict[str, Any]]


def checkpoint_files(deployed: DeployedPolicy, state_dim: int) -> dict[str, bytes]:
    """Contents of a LeRobot checkpoint's files by name.

    Args:
        deployed: the policy.
        state_dim: how many of an observation's first numbers are the robot's state; the others, of which LeRobot wants
            at least one, are its environment's.

    Raises:
        UserError: if LeRobot has no policy that computes the same.
    """
    if not isinstance(deployed, SampledPolicy):
        raise UserError(f"LeRobot has no policy type for {type(deployed).__name__}; export a bundle")
    policy, eta = deployed.policy, deployed.eta
    for holds, reason in _conditions(policy, eta):
        if not holds:
            raise UserError(f"LeRobot cannot run this policy: {reason}")
    dims = state_dim, policy.features - state_dim
    if min(dims) < 1:
        raise UserError(
            f"state_dim={state_dim} must leave each part at least one of {policy.features} observed numbers"
        )
    inputs = {_STATE: _feature("STATE", dims[0]), _ENVIRONMENT: _feature("ENV", dims[1])}
    output = {_ACTION: _feature("ACTION", policy.action_shape[1])}
    config = {"type": "diffusion", "input_features": inputs, "output_features": output} | _settings(policy, eta)
    before = [("rename_observations_processor", {"rename_map": {}}), ("to_batch_processor", {}), _TO_CPU]
    moments = _moments(policy, dims)
    return {
        "config.json": _json(config),
        "model.safetensors": save(weights_of(cast(ChiUNet1d, policy.net), cast(DDPM, policy.process).levels)),
        **_processor("policy_preprocessor", [*before, ("normalizer_processor", _scaling(inputs | output))], moments),
        **_processor("policy_postprocessor", [("unnormalizer_processor", _scaling(output)), _TO_CPU], moments),
    }


def _conditions(policy: GenerativePolicy, eta: float) -> Iterator[tuple[bool, str]]:
    """What must hold for LeRobot to compute the same, and what to say if it does not, in the order to check it."""
    net, process, steps = policy.net, policy.process, policy.steps
    if not isinstance(process, DDPM) or not isinstance(net, ChiUNet1d):
        yield False, f"LeRobot has no {type(process).__name__} on {type(net).__name__}; train with policy=lerobot"
        return
    wave, levels, halvings = net.modulation.time[0], process.levels, len(net.widths)
    yield policy.features == policy.obs_normalizer.shift.numel(), "the policy sees a history; train with env.history=1"
    frozen = f"a frozen copy of the net makes the first moves; train with agent.trained_moves={steps}"
    yield policy.frozen_net is None, frozen
    skips = f"the policy skips levels, and LeRobot would skip others; train with policy.process.levels={steps}"
    yield steps == levels, skips
    known = f"LeRobot has no schedule {process.schedule}; train with policy.process.schedule=cosine"
    yield process.schedule in _SCHEDULES, known
    part = f"LeRobot samples from all of the noise, but not from {policy.noise_scale:g} of it; set policy.noise_scale=1"
    yield policy.noise_scale == 1, part
    yield eta in (0, 1), f"LeRobot has DDIM and DDPM, eta 0 and 1, but not {eta:g}"
    yield eta == 1 or process.clip is None, "LeRobot's DDIM clips otherwise; train with policy.process.clip=null"
    counts = isinstance(wave, SinusoidalEmbedding) and bool(wave.frequencies[0] == levels)
    yield counts, f"LeRobot embeds a level's number; train with policy.net.time_scale={levels}, sinusoidal"
    yield net.modulation.time.dim > 2, "LeRobot cannot embed a number in two; train with policy.net.time_dim=4 or more"
    whole = f"LeRobot wants policy.horizon={policy.horizon} divisible by {2**halvings}; train with another"
    yield policy.horizon % 2**halvings == 0, whole


def _settings(policy: GenerativePolicy, eta: float) -> dict[str, Any]:
    net, process = cast(ChiUNet1d, policy.net), cast(DDPM, policy.process)
    return {
        "device": "cpu",
        "n_obs_steps": 1,
        "horizon": policy.horizon,
        "n_action_steps": policy.execute,
        "drop_n_last_frames": policy.horizon - policy.execute,
        "normalization_mapping": _NORMALIZATION,
        "down_dims": list(net.widths),
        "kernel_size": net.kernel,
        "n_groups": GROUPS,
        "diffusion_step_embed_dim": net.modulation.time.dim,
        "use_film_scale_modulation": True,
        "noise_scheduler_type": "DDPM" if eta else "DDIM",
        "num_train_timesteps": process.levels,
        "num_inference_steps": policy.steps,
        "beta_schedule": _SCHEDULES[process.schedule],
        "beta_start": process.betas[0],
        "beta_end": process.betas[-1],
        "prediction_type": _PREDICTIONS[process.prediction],
        "clip_sample": process.clip is not None,
        "clip_sample_range": process.clip or 1.0,
    }


def _moments(policy: GenerativePolicy, dims: tuple[int, int]) -> dict[str, Tensor]:
    """Means and standard deviations under LeRobot's names."""
    found: dict[str, Tensor] = {}
    for name, obs, action in (
        ("mean", policy.obs_normalizer.shift, policy.action_normalizer.shift),
        ("std", policy.obs_normalizer.scale, policy.action_normalizer.scale),
    ):
        parts = zip((_STATE, _ENVIRONMENT, _ACTION), (*obs.split(dims), action), strict=True)
        found |= {f"{feature}.{name}": part.cpu().clone() for feature, part in parts}
    return found


def _processor(name: str, steps: list[Step], moments: dict[str, Tensor]) -> dict[str, bytes]:
    """A pipeline's file, and that of the numbers it scales with."""
    entries, files = [], {}
    for index, (kind, config) in enumerate(steps):
        entry: dict[str, Any] = {"registry_name": kind, "config": config}
        if "features" in config:
            entry["state_file"] = f"{name}_step_{index}_{kind}.safetensors"
            files[entry["state_file"]] = save(moments)
        entries.append(entry)
    return {f"{name}.json": _json({"name": name, "steps": entries})} | files


def _scaling(features: Features) -> dict[str, Any]:
    return {"eps": 0.0, "features": features, "norm_map": _NORMALIZATION}  # no scale is near 0, so that none is needed


def _feature(kind: str, dim: int) -> dict[str, Any]:
    return {"type": kind, "shape": [dim]}


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
