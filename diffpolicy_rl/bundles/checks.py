"""Verification of a bundle: everything it claims that can be computed again, is."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jsonschema
import numpy as np

from diffpolicy_rl.bundles.examples import (
    ACTIONS,
    CORRECTED,
    NOISE,
    SCALE,
    SCORE,
    answers_alone,
    bundle_answers,
    errors,
    read_examples,
    require_close,
)
from diffpolicy_rl.bundles.measure import measure_latency
from diffpolicy_rl.runtime.bundle import Bundle
from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.files import read_bundle
from diffpolicy_rl.runtime.manifest import FORMAT, VERSION, Manifest

_EXAMPLES = "examples.npz"
_FEWEST = 32


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: of it.
        passed: whether it is as it must be.
        detail: what was found.
    """

    name: str
    passed: bool
    detail: str


def verify(path: Path) -> Iterator[Check]:
    """Check a bundle, a folder or a zip, and give every result as it comes.

    After a check of the files, the schema, the graphs or the examples fails, there is nothing to check the rest with.
    """
    found: list[Check] = []

    def tried(name: str, made: Callable[[], str]) -> Check:
        try:
            found.append(Check(name, True, made()))
        except BundleError as error:
            found.append(Check(name, False, str(error)))
        return found[-1]

    bundle = _Opened(path)
    for name in ("files", "schema", "graphs", "examples"):
        check = tried(name, getattr(bundle, name))
        yield check
        if not check.passed:
            return
    for name in ("parity", "batches", "limits", "latency"):
        yield tried(name, getattr(bundle, name))


class _Opened:
    """A bundle, opened further with every check; each says in a few words what it found."""

    manifest: Manifest
    bundle: Bundle
    arrays: dict[str, np.ndarray]

    def __init__(self, path: Path) -> None:
        self.path, self._contents = path, {}

    def files(self) -> str:
        """Nothing but what the manifest lists, with the sizes and hashes that it lists."""
        self.manifest, self._contents = read_bundle(self.path, (_EXAMPLES,))
        sizes = [file.bytes for file in self.manifest.files]
        return f"{len(sizes)} files, {sum(sizes) / 1e6:.2f} MB, as listed"

    def schema(self) -> str:
        """The manifest against the JSON Schema."""
        schema = json.loads(resources.files("diffpolicy_rl.bundles").joinpath("manifest.schema.json").read_text())
        tree = {"format": FORMAT, "version": VERSION} | json.loads(json.dumps(dataclasses.asdict(self.manifest)))
        wrong = next(jsonschema.Draft202012Validator(schema).iter_errors(tree), None)
        if wrong is not None:
            raise BundleError(f"manifest.json: {wrong.json_path} {wrong.message[:200]}")
        return f"manifest.json is of {FORMAT} version {VERSION}"

    def graphs(self) -> str:
        """Every graph loads, and has the inputs and outputs that the manifest says."""
        self.bundle = Bundle(self.manifest, {name: self._contents[p] for name, p in self.manifest.graphs.items()})
        return ", ".join(self.manifest.graphs.values())

    def examples(self) -> str:
        """There are enough of them, in the right shapes."""
        if _EXAMPLES not in self._contents:
            raise BundleError(f"there is no {_EXAMPLES} to compare with")
        self.arrays, manifest = read_examples(self._contents[_EXAMPLES]), self.manifest
        rows = len(self.arrays.get(ACTIONS, ()))
        shapes = {port.name: (rows, *port.shape) for port in (*manifest.inputs, manifest.output)}
        shapes |= {SCALE: manifest.output.shape[-1:]}
        shapes |= {} if manifest.noise is None else {NOISE: (rows, *manifest.noise)}
        shapes |= {CORRECTED: (rows, *manifest.output.shape[1:])} if "residual" in manifest.graphs else {}
        shapes |= {SCORE: (rows,)} if "score" in manifest.graphs else {}
        if {name: array.shape for name, array in self.arrays.items()} != shapes or rows < _FEWEST:
            raise BundleError(f"{_EXAMPLES} does not hold at least {_FEWEST} rows of what manifest.json describes")
        if not all(np.isfinite(array).all() for array in self.arrays.values()) or not (self.arrays[SCALE] > 0).all():
            raise BundleError(f"{_EXAMPLES} holds numbers that are not finite, or a scale that is not above 0")
        return f"{rows} rows"

    @functools.cached_property
    def answers(self) -> dict[str, np.ndarray]:
        """What the bundle gives for the examples."""
        return bundle_answers(self.bundle, self.arrays, self.arrays[ACTIONS])

    def parity(self) -> str:
        """The graphs give what torch gave when the bundle was made."""
        return self._close(self.answers, self.arrays, "torch's")

    def batches(self) -> str:
        """A row alone gives what it gives among others."""
        alone = answers_alone(self.bundle, self.arrays, self.arrays[ACTIONS][:_FEWEST])
        return self._close(alone, {name: array[:_FEWEST] for name, array in self.answers.items()}, "that of a batch")

    def limits(self) -> str:
        """Most of the examples' actions lie within the limits; else units or limits are not what they seem."""
        actions, limits = self.arrays[ACTIONS], self.manifest.limits
        outside = ((actions < np.array(limits.low)) | (actions > np.array(limits.high))).mean()
        if outside > 0.5:
            raise BundleError(f"{100 * outside:.0f} % of the examples' actions lie outside low and high")
        return f"{100 * outside:.1f} % of the examples' actions lie outside low and high, and would be clipped"

    def latency(self) -> str:
        """A call takes no longer than its budget, but for one in a hundred."""
        budget = self.manifest.control.latency_budget_ms
        times = measure_latency(self.bundle, self.arrays, self.arrays[ACTIONS])["graphs"]
        told = ", ".join(f"{name} p50 {time['p50_ms']:.3f} p99 {time['p99_ms']:.3f} ms" for name, time in times.items())
        if sum(time["p99_ms"] for time in times.values()) > budget:
            raise BundleError(f"{told}, but the budget is {budget:g} ms")
        return f"{told}, budget {budget:g} ms"

    def _close(self, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], whose: str) -> str:
        far = {name: errors(ours[name], theirs[name], name, self.arrays[SCALE]).max() for name in ours}
        return require_close(far, whose)
