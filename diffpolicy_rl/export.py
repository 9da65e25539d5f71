"""Export a run's policy for a robot: ``python -m diffpolicy_rl.export runs/<run> out=bundle/``."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError

if TYPE_CHECKING:
    from diffpolicy_rl.bundles.writing import About
    from diffpolicy_rl.runtime.manifest import Limits
    from diffpolicy_rl.training.config import TrainConfig
    from diffpolicy_rl.types import Agent, VecEnv


@dataclass(frozen=True)
class ExportConfig:
    """Write a run's deployed policy as a bundle, which runs on numpy and onnxruntime, or as a checkpoint of LeRobot.

    Of the settings after ``format`` a checkpoint has ``state_dim`` and ``trust`` alone, a bundle all but ``state_dim``.

    Attributes:
        run: the run folder.
        out: the folder to write; a bundle that is there is replaced by another.
        which: last, best, base, or a checkpoint's step.
        format: bundle, or lerobot for what was trained with policy=lerobot.
        name: of the bundle, by default the run folder's.
        rate_hz: actions executed per second, by default the task's.
        names: of the entries of an action, such as joints.
        units: of actions.
        obs_names: of the entries of an observation.
        obs_units: of observations.
        limits: a YAML file of low, high, velocity, acceleration, jerk, workspace; low and high default to the task's.
        latency_budget_ms: what a call may take, by default half of the time that its actions are executed for.
        stale_after_ms: age at which an observation is not acted on, by default two control periods.
        state_dim: how many of an observation's first numbers are the robot's own state.
        trust: modules outside diffpolicy_rl that the run names and whose code may run.
    """

    run: str
    out: str
    which: str = "last"
    format: Literal["bundle", "lerobot"] = "bundle"
    name: str | None = None
    rate_hz: float | None = None
    names: tuple[str, ...] = ()
    units: str | None = None
    obs_names: tuple[str, ...] = ()
    obs_units: str | None = None
    limits: str | None = None
    latency_budget_ms: float | None = None
    stale_after_ms: float | None = None
    state_dim: int | None = None
    trust: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse rates and times that are none, and settings of the other format."""
        for name in ("rate_hz", "latency_budget_ms", "stale_after_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}={value} must be above 0")
        if self.format == "lerobot" and self.state_dim is None:
            raise UserError(
                "format=lerobot needs state_dim: how many of the first observed numbers are the robot's own"
            )
        given = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) not in (None, ())}
        own = given - {"run", "out", "which", "format", "trust"}
        for name in sorted(own - {"state_dim"} if self.format == "lerobot" else own & {"state_dim"}):
            raise UserError(f"format={self.format} has no place for {name}")


@dataclass(frozen=True)
class LimitSettings:
    """What a limits file may hold, each with one number per action dimension.

    Attributes:
        low: lower bounds.
        high: upper bounds.
        velocity: bounds per second.
        acceleration: bounds per second squared.
        jerk: bounds per second cubed.
        workspace: low and high corner, for actions that begin with a Cartesian position.
    """

    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    velocity: tuple[float, ...] | None = None
    acceleration: tuple[float, ...] | None = None
    jerk: tuple[float, ...] | None = None
    workspace: tuple[tuple[float, ...], ...] | None = None


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(ExportConfig, argv, "python -m diffpolicy_rl.export RUN out=FOLDER [key=value ...]", "run")
    if config.format == "bundle":
        _require_onnx()
    from diffpolicy_rl.training.build import build_env
    from diffpolicy_rl.training.run import load_agent, read_config

    folder = Path(config.run)
    settings = read_config(folder, config.trust)
    agent = load_agent(folder, config.which, config.trust)
    if config.format == "lerobot":
        _write_checkpoint(config, agent)
    else:
        _write_bundle(config, folder, settings, agent, build_env(settings, 1))


def _require_onnx() -> None:
    """Say what is missing before anything is loaded."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("export needs extra packages: pip install 'diffpolicy_rl[export]'") from error


def _write_checkpoint(config: ExportConfig, agent: "Agent") -> None:
    """Write LeRobot's files."""
    from diffpolicy_rl.bundles.lerobot import checkpoint_files
    from diffpolicy_rl.data.files import new_folder

    assert config.state_dim is not None
    files = checkpoint_files(agent.deploy().eval(), config.state_dim)
    with new_folder(Path(config.out)) as target:
        for name, content in files.items():
            (target / name).write_bytes(content)
    print(f"wrote {config.out}: {', '.join(files)}")


def _write_bundle(config: ExportConfig, folder: Path, settings: "TrainConfig", agent: "Agent", env: "VecEnv") -> None:
    """Write a bundle, measured."""
    from diffpolicy_rl.bundles.graph import Deployment
    from diffpolicy_rl.bundles.writing import write_bundle

    policy = agent.deploy().exportable().eval().requires_grad_(False)
    normalizers = agent.policy.obs_normalizer, agent.policy.action_normalizer
    shape = env.single_observation_space.shape
    assert shape is not None
    about, out = _about(config, folder, settings, agent, env), config.out
    manifest = write_bundle(Path(out), Deployment(policy, tuple(shape), *normalizers), about)
    _warn(about.evaluation["distillation"])
    print(f"wrote {out}: {', '.join(manifest.graphs.values())}; check it: python -m diffpolicy_rl.verify {out}")


def _warn(taught: dict[str, Any] | None) -> None:
    """Say if nothing shows that a student is as good as its teacher."""
    if taught is None or (taught["verdict"] and taught["verdict"]["passed"]):
        return
    reason = "it was not shown to be as good" if taught["verdict"] else "this checkpoint was never compared with it"
    print(f"warning: this is a student of {taught['teacher']}, but {reason}", file=sys.stderr)


def _about(config: ExportConfig, folder: Path, settings: "TrainConfig", agent: "Agent", env: "VecEnv") -> "About":
    """What the run, the task and the command line know of the policy."""
    from diffpolicy_rl.bundles.provenance import evaluation, source
    from diffpolicy_rl.bundles.writing import About

    rate = config.rate_hz or env.metadata.get("render_fps")
    if not rate:
        raise UserError(f"{env.spec_id} does not say how often it is acted on; give rate_hz=, actions per second")
    return About(
        name=config.name or folder.resolve().name,
        algorithm=type(agent).__name__,
        rate_hz=float(rate),
        limits=_limits(config, env),
        evaluation=evaluation(folder, config.which, settings, agent),
        source=source(folder, config.which, settings, agent),
        names=config.names or None,
        units=config.units,
        obs_names=config.obs_names or None,
        obs_units=config.obs_units,
        latency_budget_ms=config.latency_budget_ms,
        stale_after_ms=config.stale_after_ms,
    )


def _limits(config: ExportConfig, env: "VecEnv") -> "Limits":
    """The limits file's, and the task's bounds of actions where it gives none."""
    import numpy as np
    import yaml

    from diffpolicy_rl.runtime.manifest import Limits

    values: Any = {}
    if config.limits is not None:
        try:
            values = yaml.safe_load(Path(config.limits).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"limits={config.limits} cannot be read: {str(error).splitlines()[0]}") from None
    given = cli.convert(values or {}, LimitSettings, "limits")
    box = env.single_action_space
    bounds = {name: tuple(float(str(bound)) for bound in getattr(box, name)) for name in ("low", "high")}
    low, high = (getattr(given, name) or bounds[name] for name in ("low", "high"))
    if not np.isfinite([*low, *high]).all():
        raise UserError(f"the actions of {env.spec_id} have no bounds; give limits=FILE.yaml with low and high")
    if given.workspace is not None and len(given.workspace) != 2:
        raise UserError("limits.workspace must be two corners, the low one and the high one")
    corners: Any = given.workspace
    return Limits(low, high, given.velocity, given.acceleration, given.jerk, corners)


if __name__ == "__main__":
    cli.run(main)
