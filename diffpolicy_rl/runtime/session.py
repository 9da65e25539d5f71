"""What the server keeps for one client: its noise stream, observation history and chunk."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.runtime import wire
from diffpolicy_rl.runtime.manifest import Manifest, Port

Array = NDArray[Any]


class Policy(Protocol):
    """What the server needs of a bundle."""

    @property
    def manifest(self) -> Manifest:
        """What goes in and out."""
        ...

    def __call__(self, obs: Mapping[str, Array], noise: Array | None = None) -> Array:
        """Actions (B, H, D) in physical units."""
        ...

    def noise(self, rows: int, rng: np.random.Generator) -> Array | None:
        """Noise for B rows, None if there is none."""
        ...

    def correct(self, obs: Mapping[str, Array], base_action: Array) -> Array:
        """What is executed in place of a planned action (B, D); only asked of a policy with a residual graph."""
        ...


class RequestError(Exception):
    """A request is not answered; one sentence, without what only the log shall hold.

    Attributes:
        kind: what failed.
    """

    def __init__(self, kind: Literal["message", "observation", "policy", "timeout"], sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class Answer(NamedTuple):
    """A reply, and the seconds that the policy took for it."""

    frame: bytes
    infer_s: float


def per_step(manifest: Manifest) -> bool:
    """Whether every single action is corrected by what is seen just before it."""
    return "residual" in manifest.graphs


def metadata(manifest: Manifest) -> dict[str, Any]:
    """What a client is told of the policy when it connects.

    A policy that corrects every action answers with one at a time: its horizon is 1 here.
    """
    control = manifest.control
    if per_step(manifest):
        control = dataclasses.replace(control, horizon=1, execute=1)
    return {
        "name": manifest.name,
        "algorithm": manifest.algorithm,
        "inputs": [dataclasses.asdict(port) for port in manifest.inputs],
        "output": dataclasses.asdict(manifest.output),
        "control": dataclasses.asdict(control),
        "limits": dataclasses.asdict(manifest.limits),
    }


class Session:
    """Answers one client's requests.

    A request is a map of the observations that the manifest names, without the batch dimension. Where an input is
    (To, O), a client of a policy that is asked in every tick may send its newest row (O,) alone: the rows before it are
    kept here, and the first one of an episode stands for those that were not seen. A policy that is asked every A ticks
    was trained on rows that its client alone has seen, and wants them all.

    Args:
        policy: what decides; called from one thread at a time per session.
        rng: this client's noise stream; an episode's end does not restart it.
    """

    def __init__(self, policy: Policy, rng: np.random.Generator) -> None:
        self._policy, self._rng = policy, rng
        self._ports = {port.name: port for port in policy.manifest.inputs}
        self._per_step = per_step(policy.manifest)
        self._every_tick = self._per_step or policy.manifest.control.execute == 1
        self.reset()

    def reset(self) -> None:
        """Start an episode: forget what was seen and planned."""
        self._history: dict[str, Array] = {}
        self._plan: Array | None = None
        self._executed = 0

    def answer(self, frame: bytes, prev_total_s: float | None) -> Answer:
        """Reply to a request.

        Args:
            frame: the request as it came.
            prev_total_s: from receiving the request before to handing over its reply, for ``server_timing``.

        Raises:
            RequestError: if the request is refused, or the policy fails; the cause is chained.
        """
        obs = self._observations(frame)
        began = time.perf_counter()
        try:
            actions = self._act(obs)
        except Exception as error:
            raise RequestError("policy", "the policy failed; the server's log says why") from error
        infer_s = time.perf_counter() - began
        timing = {"infer_ms": 1e3 * infer_s}
        if prev_total_s is not None:
            timing["prev_total_ms"] = 1e3 * prev_total_s
        return Answer(wire.pack({"actions": actions, "server_timing": timing}), infer_s)

    def _observations(self, frame: bytes) -> dict[str, Array]:
        """The request's observations with a batch dimension of 1."""
        try:
            message = wire.unpack(frame)
        except wire.WireError as error:
            raise RequestError("message", str(error)) from None
        start = message.pop(wire.RESET, False)
        if not isinstance(start, bool):
            raise RequestError("message", f"{wire.RESET} is neither true nor false")
        if message.keys() != self._ports.keys():
            raise RequestError("observation", _names(set(message), set(self._ports)))
        checked = {name: check(message[name], port, self._every_tick) for name, port in self._ports.items()}
        if start:
            self.reset()
        return {name: self._with_history(value, self._ports[name])[None] for name, value in checked.items()}

    def _with_history(self, value: Array, port: Port) -> Array:
        if value.shape != port.shape:
            before = self._history.get(port.name, np.broadcast_to(value, port.shape))
            value = np.concatenate([before[1:], value[None]])
        self._history[port.name] = value
        return value

    def _act(self, obs: Mapping[str, Array]) -> NDArray[np.float32]:
        """Actions (H, D), or the one (1, D) that is due of a plan whose every action is corrected."""
        if not self._per_step:
            return self._sample(obs)
        if self._plan is None or self._executed == self._policy.manifest.control.execute:
            self._plan, self._executed = self._sample(obs), 0
        planned = self._plan[self._executed : self._executed + 1]
        self._executed += 1
        return _checked(self._policy.correct(obs, planned), planned.shape)

    def _sample(self, obs: Mapping[str, Array]) -> NDArray[np.float32]:
        actions = self._policy(obs, self._policy.noise(1, self._rng))
        return _checked(actions, (1, *self._policy.manifest.output.shape))[0]


def check(value: object, port: Port, every_tick: bool) -> Array:
    """An observation in its input's dtype; floats of another width are cast.

    Args:
        value: what was sent.
        port: the input.
        every_tick: whether its newest row (O,) will do in place of (To, O).

    Raises:
        RequestError: if it is not an array of the input's kind and shape, or is not finite.
    """
    wanted = np.dtype(port.dtype)
    if not isinstance(value, np.ndarray | np.generic):
        raise RequestError("observation", f"{port.name} is a {type(value).__name__}, not an array")
    array = np.asarray(value)
    shapes = [port.shape, port.shape[1:]] if every_tick and len(port.shape) == 2 else [port.shape]
    castable = array.dtype == wanted or array.dtype.kind == wanted.kind == "f"
    if not castable or array.shape not in shapes:
        raise RequestError("observation", f"{port.name} is {array.dtype} {array.shape}, not {wanted} {port.shape}")
    with np.errstate(over="ignore"):
        array = array.astype(wanted, copy=False)
    if wanted.kind == "f" and not np.isfinite(array).all():
        raise RequestError("observation", f"{port.name} is not finite")
    return array


def _checked(actions: Array, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if actions.shape != shape or not np.isfinite(actions).all():
        raise ValueError(f"the policy gave actions of shape {actions.shape}, not finite ones of {shape}")
    return np.ascontiguousarray(actions, np.float32)


def _names(found: set[str], wanted: set[str]) -> str:
    """Which observations are missing, or else unknown."""
    if missing := sorted(wanted - found):
        return f"the observation {missing[0]} is missing"
    unknown = min(found - wanted)
    return f"the policy has no input {unknown[:40]!r}; it takes {', '.join(sorted(wanted))}"
