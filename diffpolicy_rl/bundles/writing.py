"""Putting a bundle together: graphs, weights, examples, reports and card in one folder that appears when complete."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from diffpolicy_rl.bundles.card import card
from diffpolicy_rl.bundles.examples import ACTIONS, OBSERVATION, SCALE, write_examples
from diffpolicy_rl.bundles.graph import Deployment, export_graphs
from diffpolicy_rl.bundles.measure import measure_latency
from diffpolicy_rl.bundles.parity import measure_parity, require_parity
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.runtime.bundle import Bundle
from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.manifest import FORMAT, NAME, Control, File, Limits, Manifest, Port, write_manifest

_EXAMPLES = 32


@dataclass(frozen=True)
class About:
    """What no policy knows of itself.

    Attributes:
        name: of the bundle.
        algorithm: what trained the policy.
        rate_hz: actions executed per second.
        limits: of actions.
        evaluation: content of ``evaluation.json``.
        source: where the policy comes from.
        names: of the entries of an action, or None.
        units: of actions, or None.
        obs_names: of the entries of an observation, or None.
        obs_units: of observations, or None.
        latency_budget_ms: what a call may take; by default half of the time its chunk is executed for.
        stale_after_ms: age at which an observation is not acted on; by default two control periods.
    """

    name: str
    algorithm: str
    rate_hz: float
    limits: Limits
    evaluation: dict[str, Any]
    source: dict[str, str]
    names: tuple[str, ...] | None = None
    units: str | None = None
    obs_names: tuple[str, ...] | None = None
    obs_units: str | None = None
    latency_budget_ms: float | None = None
    stale_after_ms: float | None = None


def write_bundle(out: Path, deployment: Deployment, about: About) -> Manifest:
    """Export a policy and measure what was exported.

    Args:
        out: the bundle's folder; a bundle that is there is replaced.
        deployment: the policy.
        about: everything else.

    Raises:
        UserError: if the policy cannot be exported, its graphs are not what torch computes, what is said about it is
            not sound, or ``out`` is no bundle.
    """
    _refuse_foreign(out)
    try:
        graphs = export_graphs(deployment)
        manifest = manifest_of(deployment, about, graphs.contents, graphs.noise, graphs.horizon)
        bundle = Bundle(manifest, graphs.contents)
        parity = measure_parity(deployment, bundle)
        require_parity(parity)
        latency = measure_latency(bundle, parity.inputs, parity.answers[ACTIONS])
        with _appearing(out) as folder:
            for name, content in graphs.contents.items():
                (folder / manifest.graphs[name]).write_bytes(content)
            weights = {name: weight.clone().contiguous() for name, weight in deployment.policy.state_dict().items()}
            (folder / "policy.safetensors").write_bytes(save(weights))
            shown = {name: value[:_EXAMPLES] for name, value in (parity.inputs | parity.answers).items()}
            write_examples(folder / "examples.npz", shown | {SCALE: deployment.action_normalizer.scale.numpy()})
            reports = {"parity": parity.report, "latency": latency, "evaluation": about.evaluation}
            for name, report in reports.items():
                (folder / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
            (folder / "README.md").write_text(card(manifest, about.evaluation, parity.report, latency))
            shutil.copyfile(Path(__file__).with_name("run_policy.py"), folder / "run_policy.py")
            complete = dataclasses.replace(manifest, files=_files(folder))
            write_manifest(folder, complete)
    except BundleError as error:
        raise UserError(f"no bundle can be made: {error}") from error
    return complete


def manifest_of(
    deployment: Deployment, about: About, contents: dict[str, bytes], noise: tuple[int, ...] | None, horizon: int
) -> Manifest:
    """The manifest of a policy's graphs, files aside.

    Args:
        deployment: the policy.
        about: everything else.
        contents: of each graph's file.
        noise: shape of one row's noise, or None.
        horizon: H.
    """
    execute, dim = deployment.policy.execute, len(deployment.action_normalizer.shift)
    period = 1e3 / about.rate_hz
    budget = about.latency_budget_ms or 0.5 * period * (1 if deployment.policy.per_step else execute)
    control = Control(about.rate_hz, horizon, execute, budget, about.stale_after_ms or 2 * period)
    return Manifest(
        name=about.name,
        algorithm=about.algorithm,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        inputs=(Port(OBSERVATION, deployment.obs_shape, "float32", about.obs_names, about.obs_units),),
        noise=noise,
        output=Port(ACTIONS, (horizon, dim), "float32", about.names, about.units),
        control=control,
        limits=about.limits,
        graphs={name: f"{name}.onnx" for name in contents},
        files=(),
        source=about.source,
    )


def _files(folder: Path) -> tuple[File, ...]:
    """Every file of a folder, with size and hash."""
    paths = sorted(path for path in folder.iterdir() if path.name != NAME)
    contents = ((path.name, path.read_bytes()) for path in paths)
    return tuple(File(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in contents)


def _refuse_foreign(out: Path) -> None:
    """Raise UserError if something is in the bundle's place that is not a bundle."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} exists and is not a bundle; choose another out")
    if out.is_dir() and any(out.iterdir()):
        try:
            ours = json.loads((out / NAME).read_text()).get("format") == FORMAT
        except (OSError, ValueError, AttributeError):
            ours = False
        if not ours:
            raise UserError(f"{out} exists and is not a bundle; choose another out")


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of ``out`` when the block ends well, and vanishes otherwise."""
    out = out.absolute()
    temporary, replaced = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("partial", "replaced"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        if out.exists():
            os.replace(out, replaced)
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
