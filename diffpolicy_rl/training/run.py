"""Run folders: what a finished or interrupted run left, and how to load its policy."""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.training.build import build_agent, build_policy, phase_component, pick_device
from diffpolicy_rl.training.checkpoint import Checkpoints, read_state, write_text
from diffpolicy_rl.training.config import TrainConfig, modules_of, refuse_foreign_code, resolve, to_plain
from diffpolicy_rl.training.machine import machine
from diffpolicy_rl.types import Agent, DeployedPolicy, Spec, State

_PACKAGES = ("diffpolicy_rl", "torch", "numpy", "gymnasium", "mujoco", "hydra-core", "h5py", "safetensors")


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Make a run folder, and hold it for this process; UserError if that fails, or another one trains in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {folder}; choose another run_dir") from None
        yield


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write ``config.yaml``, the resolved settings."""
    write_text(folder / "config.yaml", yaml.safe_dump(to_plain(config), sort_keys=False))


def read_config(folder: Path, trust: Collection[str] = ()) -> TrainConfig:
    """The settings of a run.

    Args:
        folder: the run folder.
        trust: modules outside diffpolicy_rl that the run may name.

    Raises:
        UserError: if it is no run, its settings are not valid, or they name other modules.
    """
    path = folder / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text())
    except OSError:
        raise UserError(f"{folder} is not a run: it has no readable config.yaml") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings")
    refuse_foreign_code(values, trust)
    return resolve(values)


def adopt_base(config: TrainConfig) -> TrainConfig:
    """Take the policy's settings from the run whose policy training starts from."""
    if config.base is None:
        return config
    base = read_config(Path(config.base), modules_of(to_plain(config)))
    return dataclasses.replace(config, policy=base.policy)


def write_manifest(folder: Path, config: TrainConfig, resumed: bool) -> None:
    """Write ``manifest.json``: what it would take to run this again; a resumed run adds what it goes on with."""
    path = folder / "manifest.json"
    manifest = {
        "command": shlex.join(["python", "-m", _entry_point(), *sys.argv[1:]]),
        "commit": commit(),
        "seed": config.seed,
        "versions": versions(),
        "machine": machine(),
    }
    if resumed and path.exists():
        earlier = json.loads(path.read_text())
        manifest = earlier | {"resumed": [*earlier.get("resumed", []), manifest]}
    write_text(path, json.dumps(manifest, indent=2))


def _entry_point() -> str:
    """The module that was started, where it is one of this package's."""
    started = Path(sys.argv[0]).resolve()
    return f"diffpolicy_rl.{started.stem if started.parent == Path(__file__).resolve().parents[1] else 'train'}"


def versions() -> dict[str, str | None]:
    """Versions of Python and of what figures depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def checkpoint_state(config: TrainConfig, spec: Spec) -> State:
    """What ``load`` needs beside a phase's own state: a checkpoint is complete without its run."""
    return {"config": to_plain(config), "spec": dataclasses.asdict(spec)}


def check_same_run(config: TrainConfig, saved: dict[str, Any], folder: Path) -> None:
    """Raise UserError unless a checkpoint was made with these settings, apart from when and where to stop."""
    changeable = {field: saved.get(field) for field in ("iterations", "max_minutes", "run_dir")}
    for name, mine, theirs in differences(to_plain(config) | changeable, saved):
        raise UserError(f"the checkpoint in {folder} was made with {name}={theirs}, but the run's config says {mine}")


def differences(ours: Any, theirs: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Plain settings in which two runs, theirs the older one, differ: their dotted name, and both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in theirs:  # what an older run does not know is a setting that came since, at its default
            yield from differences(ours.get(key), theirs.get(key), f"{name}.{key}".lstrip("."))
    elif ours != theirs:
        yield name, ours, theirs


def load_agent(
    path: str | Path, which: str = "last", trust: Collection[str] = (), device: torch.device | str = "cpu"
) -> Agent:
    """The agent of a checkpoint, ready to act.

    Args:
        path: a run folder.
        which: ``last``, ``best``, ``base`` or a step.
        trust: modules outside diffpolicy_rl that the run may name.
        device: where it shall act.
    """
    return _rebuild(_read(path, which, trust), device)


def load(
    path: str | Path, which: str = "last", trust: Collection[str] = (), device: torch.device | str = "cpu"
) -> DeployedPolicy:
    """The deployed policy of a run; see ``load_agent`` for the arguments."""
    return load_agent(path, which, trust, device).deploy().eval().requires_grad_(False)


def read_experience(path: str | Path, trust: Collection[str] = ()) -> tuple[State, Callable[[Tensor], Tensor]]:
    """What a run's last checkpoint holds of what its agent lived through.

    Returns:
        The state of a ``ReplayBuffer``, and what takes its actions to env units.

    Raises:
        UserError: if it holds nothing of the kind.
    """
    state = _read(path, "last", trust)
    diary = state.get("rollout", {}).get("diary")
    if diary is not None:
        return diary, lambda action: action
    if "replay" not in state:
        raise UserError(f"{path} kept nothing of what its agent lived through; train with diary=true")
    return state["replay"], _rebuild(state, "cpu").policy.action_normalizer.inverse


def load_base(config: TrainConfig, spec: Spec) -> GenerativePolicy:
    """The pretrained policy of the run that ``base=`` names; UserError if it does not fit the task."""
    state = _read(str(config.base), "base", modules_of(to_plain(config)))
    theirs = _spec(state)
    if (theirs.obs_shape, theirs.action_dim) != (spec.obs_shape, spec.action_dim):
        raise UserError(
            f"base={config.base} was trained on {theirs.env_id} with observations {theirs.obs_shape} and "
            f"{theirs.action_dim} actions; {spec.env_id} has {spec.obs_shape} and {spec.action_dim}"
        )
    return _rebuild(state, pick_device(config.device)).policy.requires_grad_(True)


def _read(path: str | Path, which: str, trust: Collection[str]) -> State:
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"there is no run at {folder}")
    state = read_state(Checkpoints(folder / "checkpoints").find(which))
    refuse_foreign_code(state["config"], trust)
    return state


def _rebuild(state: State, device: torch.device | str) -> Agent:
    config = resolve(state["config"])
    policy = build_policy(config.policy, _spec(state), config.seed).to(device)
    agent = build_agent(phase_component(config, state["phase"]), policy, 1, config.seed)
    try:
        agent.load_state_dict(state["agent"])
    except KeyError as error:
        raise UserError(f"the checkpoint has no {error}, because another version wrote it; train anew") from None
    return agent


def _spec(state: State) -> Spec:
    return Spec(**{name: _tupled(value) for name, value in state["spec"].items()})


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def commit() -> str | None:
    """The commit of the working tree this package runs from, marked if it has changes; None outside one."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
