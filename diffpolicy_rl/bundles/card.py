"""The model card of a bundle: ``README.md`` with a metadata block that model hubs read."""

from typing import Any

import yaml

from diffpolicy_rl.runtime.manifest import OUTPUTS, Limits, Manifest, Port
from diffpolicy_rl.training.verdict import verdict_line

_GRAPHS = {
    "policy": "observations (and noise) to chunks of actions, once per chunk",
    "residual": "observation and planned action to what is executed in its place, in every control step",
    "score": "observation and chunk to what the policy's critics think of it; higher is better",
}


def card(manifest: Manifest, evaluation: dict[str, Any], parity: dict[str, Any], latency: dict[str, Any]) -> str:
    """The card's text.

    Args:
        manifest: of the bundle, files aside.
        evaluation: content of ``evaluation.json``.
        parity: content of ``parity.json``.
        latency: content of ``latency.json``.
    """
    metadata = yaml.safe_dump(_metadata(manifest, evaluation), sort_keys=False)
    noise = "none: the policy is deterministic" if manifest.noise is None else f"standard normal {list(manifest.noise)}"
    control = manifest.control
    source = "\n".join(f"- {key}: {value}" for key, value in manifest.source.items())
    graphs = "\n".join(f"- `{path}`: {_GRAPHS[name]}" for name, path in manifest.graphs.items())
    measured = "\n".join(_measured(name, parity, latency) for name in manifest.graphs)
    return f"""---
{metadata}---

# {manifest.name}

A policy trained with {manifest.algorithm}, exported for control at {control.rate_hz:g} Hz. Each call gives
{control.horizon} actions, of which {control.execute} are executed before the next one.

{_result(evaluation)}{_distillation(evaluation["distillation"])}

## Interface

Normalisation is inside the graphs; everything that is random is outside.

{_ports(manifest)}
- noise: {noise}

{graphs}

## Limits

{_limits(manifest.limits)}

They are what `diffpolicy_rl.runtime`'s safety filter holds actions to. That filter is not a certified safety function:
it sits above the robot's own.

## Measured

On {latency["device"]["processor"]}, one thread, batch 1. Parity is the largest difference from torch on
{parity["rows"]} random inputs, actions in normalised units.

| graph | p50 ms | p99 ms | parity |
|---|---|---|---|
{measured}

## Use

    python run_policy.py                             # numpy and onnxruntime, nothing else
    python -m diffpolicy_rl.verify .                 # hashes, schema, parity, limits, latency
    python -m diffpolicy_rl.serve .

## Source

{source}
"""


def _metadata(manifest: Manifest, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The block that model hubs read."""
    task = evaluation["env"]
    block: dict[str, Any] = {
        "library_name": "diffpolicy_rl",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "reinforcement-learning", "onnx", manifest.algorithm.lower(), task],
    }
    result = evaluation["result"]
    if result is None:
        return block
    metrics = [{"type": "mean_reward", "value": round(result["mean"], 3), "name": "mean return"}]
    if "success" in result:
        metrics.append({"type": "success_rate", "value": round(result["success"], 4), "name": "success rate"})
    found = {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": task, "type": task},
        "metrics": metrics,
    }
    return block | {"model-index": [{"name": manifest.name, "results": [found]}]}


def _result(evaluation: dict[str, Any]) -> str:
    result, task = evaluation["result"], evaluation["env"]
    if result is None:
        return f"Its run on {task} has no evaluation yet."
    success = f", success {100 * result['success']:.1f} %" if "success" in result else ""
    return (
        f"On {task}: return {result['mean']:.4g} [{result['ci_low']:.4g}, {result['ci_high']:.4g}] (95 % interval of "
        f"the mean, {result['episodes']} episodes){success}.{' ' + evaluation['note'] if evaluation['note'] else ''}"
    )


def _distillation(taught: dict[str, Any] | None) -> str:
    if taught is None:
        return ""
    verdict = verdict_line(taught["verdict"]) if taught["verdict"] else "this checkpoint was never compared with it"
    return f"\n\nA student of the run {taught['teacher']} ({taught['teacher_which']}) by {taught['method']}: {verdict}."


def _ports(manifest: Manifest) -> str:
    return "\n".join(_port(port) for port in (*manifest.inputs, manifest.output))


def _port(port: Port) -> str:
    names = f": {', '.join(port.names)}" if port.names else ""
    return f"- {port.name}: {port.dtype} {list(port.shape)}{' in ' + port.units if port.units else ''}{names}"


def _limits(limits: Limits) -> str:
    rows = [(name, getattr(limits, name)) for name in ("low", "high", "velocity", "acceleration", "jerk", "workspace")]
    return "\n".join(f"- {name}: {_plain(value) if value else 'none'}" for name, value in rows)


def _plain(value: tuple[Any, ...]) -> list[Any]:
    return [_plain(item) if isinstance(item, tuple) else item for item in value]


def _measured(graph: str, parity: dict[str, Any], latency: dict[str, Any]) -> str:
    output = OUTPUTS[graph]
    times = latency["graphs"][graph]
    far = parity["outputs"][output]["onnx_torch"]["max"]
    return f"| {graph} | {times['p50_ms']:.3f} | {times['p99_ms']:.3f} | {far:.1e} |"
