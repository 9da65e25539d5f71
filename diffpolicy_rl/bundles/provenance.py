"""Where a bundle's policy comes from, and how well it did there."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from diffpolicy_rl.bundles.graph import OPSET
from diffpolicy_rl.training.config import TrainConfig
from diffpolicy_rl.training.run import commit
from diffpolicy_rl.types import Agent

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def evaluation(folder: Path, which: str, settings: TrainConfig, agent: Agent) -> dict[str, Any]:
    """The run's own evaluation of the policy, episode by episode, or None where it made none.

    Args:
        folder: the run.
        which: the checkpoint that is exported.
        settings: of the run.
        agent: whose policy was evaluated; where something stands in for it in the bundle, a note says so.
    """
    policy, summary = agent.deploy(), _read(folder / "summary.json")
    name = {"last": "final"}.get(which, which)
    standing_in = policy.exportable()
    note = ""
    if standing_in is not policy:
        note = (
            f"It was measured as {type(policy).__name__}; the bundle holds {type(standing_in).__name__}, which "
            "stands in for it where no graph can compute it."
        )
    versions = _read(folder / "manifest.json").get("versions", {})
    about = {"env": settings.env.id, "which": which, "result": summary.get(name), "note": note, "versions": versions}
    return about | {"distillation": _distillation(folder, which, settings, agent)}


def _distillation(folder: Path, which: str, settings: TrainConfig, agent: Agent) -> dict[str, Any] | None:
    """Who taught a student, how, and whether it is as good, if that was measured; None for all others."""
    if settings.teacher is None:
        return None
    compared = _read(folder / "distillation.json") if which == "last" else {}  # which no other checkpoint was
    return {
        "teacher": Path(settings.teacher).resolve().name,
        "teacher_which": settings.teacher_which,
        "method": type(agent).__name__,
        "verdict": compared.get("verdict"),
    }


def source(folder: Path, which: str, settings: TrainConfig, agent: Agent) -> dict[str, str]:
    """Run, checkpoint, task and versions."""
    run = _read(folder / "manifest.json")
    facts = {
        "run": folder.resolve().name,
        "which": which,
        "env": settings.env.id,
        "seed": settings.seed,
        "policy": type(agent.deploy().exportable()).__name__,
        "process": settings.policy.process["_target_"].rpartition(".")[2],
        "net": settings.policy.net["_target_"].rpartition(".")[2],
        "steps": agent.policy.steps,
        "trained_with": run.get("commit") or "unknown",
        "exported_with": commit() or "unknown",
        "opset": OPSET,
    }
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {name: str(value) for name, value in (facts | versions).items()}


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of a run, empty if there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
