"""From chunks of actions to one action per control tick."""

import atexit
import functools
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.runtime.errors import BundleError

Array = NDArray[Any]
Obs = Mapping[str, Array]
Mode = Literal["receding", "prefetch", "ensemble", "realtime"]
WarmStart = Literal["fresh", "same", "shifted"]
Submit = Callable[[Callable[[], Array]], "Future[Array]"]

_WINDOW = 50  # latencies that the delay is chosen from
_GRACE = 1.0  # seconds that a program which ends waits for what is being computed
_RUNNING: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()


class _Plan(NamedTuple):
    start: int
    """The tick that the first action is for."""
    actions: Array
    """(H, D)."""


class _Request(NamedTuple):
    start: int
    prefix: Array | None
    """(d, D), the actions that were committed when it was made, if there were any."""
    answer: "Future[Array]"


class ChunkRunner:
    """Executes the chunks of a policy for one robot: every call is one control tick and gives one action.

    ``policy(obs)`` returns the actions (H, D) for this tick and those that follow. It is given keywords only where
    they are asked for: ``noise=`` if ``noise`` is, ``prefix=`` and ``delay=`` in mode ``realtime``.

    - ``receding``: asks in this tick, executes A actions, asks again, as the policy was evaluated.
    - ``ensemble``: asks every A ticks (1 in the paper) and executes the mean of all that was planned for this tick,
      weighted by exp(-decay i), i = 0 for the oldest (ACT, arXiv 2304.13705).
    - ``prefetch``: asks in the background as soon as ``share`` of the A actions is left. A chunk begins with the tick
      that it was asked in: what was for ticks that have passed is skipped, and until it arrives the old one goes on.
    - ``realtime``: the same, with the delay of d ticks foreseen (training-time real-time chunking, arXiv 2512.05964).
      The policy is given ``prefix`` (H, D), whose first ``delay`` = d rows will have been executed before it answers,
      the others 0; they are executed as they are. d is the 95th percentile of the last latencies, counted in ticks.
      The first chunk of an episode has no prefix: ``policy(obs)``.

    In the last two modes no call ever waits. It returns None where nothing is planned: before the first chunk, and when
    the policy is more than H ticks late, raises or never answers. Then nothing is to be executed
    (``SafetyFilter.hold``), and the watchdog, told of actions only, sees the silence.

    Args:
        policy: see above; in the background it gets copies of the observations, and after ``reset`` it may be called
            while an earlier call has not returned.
        horizon: H.
        execute: A, 1 to H.
        mode: see above.
        noise: draws the noise of one call, as for ``Bundle``, without its batch dimension.
        warm_start: noise of later chunks: ``fresh`` each time; the ``same`` until ``reset``, which keeps a policy that
            could go either way on its way; or that one ``shifted`` by the ticks between, (..., H, D), filled up afresh.
        share: of A, left when the next chunk is asked for.
        decay: of the ensemble's weights.
        submit: runs a function in the background; by default in a thread of its own, which keeps the program from
            ending for a second at most.

    Attributes:
        failures: calls in the background since ``reset`` that raised, or gave no (H, D).
        error: what the last of them raised.
        late: chunks since ``reset`` that arrived when all their ticks had passed.

    Raises:
        BundleError: for settings that do not fit together, and where the policy's chunk or the noise has another shape.
    """

    def __init__(
        self,
        policy: Callable[..., Array],
        horizon: int,
        execute: int,
        mode: Mode = "receding",
        *,
        noise: Callable[[], Array] | None = None,
        warm_start: WarmStart = "fresh",
        share: float = 0.5,
        decay: float = 0.01,
        submit: Submit | None = None,
    ) -> None:
        if not 1 <= execute <= horizon:
            raise BundleError(f"execute={execute} must be from 1 to the horizon, {horizon}")
        if not 0 <= share <= 1:
            raise BundleError(f"share={share} must be from 0 to 1")
        for name, value, known in (("mode", mode, Mode), ("warm_start", warm_start, WarmStart)):
            if value not in get_args(known):
                raise BundleError(f"{name}={value} must be one of {', '.join(get_args(known))}")
        self._policy, self._horizon, self._execute, self._mode = policy, horizon, execute, mode
        self._draw, self._warm_start = noise, warm_start
        self._share, self._decay, self._submit = share, decay, submit or _in_a_thread
        self.reset()

    def reset(self) -> None:
        """Forget everything, as at the start of an episode; a chunk that is still on its way will be dropped."""
        self.failures, self.late = 0, 0
        self.error: BaseException | None = None
        self._tick = 0
        self._plans: deque[_Plan] = deque()
        self._noise: _Plan | None = None
        self._request: _Request | None = None
        self._latencies: deque[int] = deque(maxlen=_WINDOW)

    @property
    def delay(self) -> int:
        """The ticks from asking to the answer that 95 % of the last chunks kept to; 0 before the first."""
        waits = sorted(self._latencies)
        return waits[math.ceil(0.95 * len(waits)) - 1] if waits else 0

    def __call__(self, obs: Obs) -> Array | None:
        """The action (D,) of this tick, or None if there is none."""
        while self._plans and self._tick - self._plans[0].start >= self._horizon:
            self._plans.popleft()
        if self._mode in ("prefetch", "realtime"):
            self._look_for_answer()
            if self._request is None and self._left() <= max(self._share * self._execute, self._foreseen()):
                self._ask_in_background(obs)
                self._look_for_answer()
        elif self._left() <= 0:
            self._take(_Plan(self._tick, self._checked(self._policy(obs, **self._next_noise()))))
        planned = [plan.actions[self._tick - plan.start] for plan in self._plans]
        self._tick += 1
        return _weighted(planned, self._decay) if planned else None

    def _left(self) -> int:
        """How many of the A actions of the last chunk are still to be executed, this tick's included."""
        return self._execute - (self._tick - self._plans[-1].start) if self._plans else 0

    def _take(self, plan: _Plan) -> None:
        if self._mode != "ensemble":
            self._plans.clear()
        self._plans.append(plan)

    def _checked(self, chunk: Array) -> Array:
        chunk = np.array(chunk)
        if chunk.ndim != 2 or len(chunk) != self._horizon:
            raise BundleError(f"the policy returned actions of shape {chunk.shape}, not ({self._horizon}, D)")
        return chunk

    def _next_noise(self) -> dict[str, Array]:
        """The keyword for the policy's noise, if it is to be given any."""
        if self._draw is None:
            return {}
        if self._noise is None or self._warm_start == "fresh":
            noise = self._draw()
        elif self._warm_start == "same":
            noise = self._noise.actions
        else:
            passed = min(self._tick - self._noise.start, self._horizon)
            old, new = self._noise.actions, self._draw()
            noise = np.concatenate([old[..., passed:, :], new[..., self._horizon - passed :, :]], axis=-2)
        if self._warm_start == "shifted" and (noise.ndim < 2 or noise.shape[-2] != self._horizon):
            raise BundleError(f"noise of shape {noise.shape} cannot be shifted in time: it is not (..., H, D)")
        self._noise = _Plan(self._tick, noise)
        return {"noise": noise}

    def _foreseen(self) -> int:
        return self.delay if self._mode == "realtime" else 0

    def _ask_in_background(self, obs: Obs) -> None:
        keywords = self._next_noise()
        prefix = None
        if self._plans and self._foreseen():
            plan = self._plans[-1]
            prefix = plan.actions[self._tick - plan.start :][: self._foreseen()]
            padded = np.zeros_like(plan.actions)
            padded[: len(prefix)] = prefix
            keywords |= {"prefix": padded, "delay": len(prefix)}
        seen = {name: np.array(value) for name, value in obs.items()}
        try:
            answer = self._submit(functools.partial(self._policy, seen, **keywords))
        except Exception as error:  # the control loop goes on without threads, too
            self._fail(error)
        else:
            self._request = _Request(self._tick, prefix, answer)

    def _look_for_answer(self) -> None:
        request = self._request
        if request is None or not request.answer.done():
            return
        self._request = None
        self._latencies.append(self._tick - request.start)
        try:
            error = request.answer.exception()  # not raised, so that an interrupt of this program is not taken for it
            if error is None:
                chunk = self._checked(request.answer.result())
                if request.prefix is not None:
                    chunk[: len(request.prefix)] = request.prefix
                self._plans_from(request.start, chunk)
        except Exception as raised:
            error = raised
        if error is not None:
            self._fail(error)

    def _plans_from(self, start: int, chunk: Array) -> None:
        if self._tick - start >= self._horizon:
            self.late += 1
        else:
            self._take(_Plan(start, chunk))

    def _fail(self, error: BaseException) -> None:
        self.failures += 1
        self.error = error


def _weighted(actions: list[Array], decay: float) -> Array:
    """Mean (D,) of actions (n, D), the oldest first, with weights exp(-decay i)."""
    if len(actions) == 1:
        return actions[0]
    weights = np.exp(-decay * np.arange(len(actions)))
    return (weights @ np.stack(actions) / weights.sum()).astype(actions[0].dtype)


def _in_a_thread(work: Callable[[], Array]) -> "Future[Array]":
    answer: Future[Array] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    _RUNNING.add(thread)
    return answer


@atexit.register
def _wait_for_threads() -> None:
    """Wait a little: a graph that is done when the interpreter no longer is there aborts the program."""
    deadline = time.monotonic() + _GRACE
    for thread in list(_RUNNING):
        thread.join(max(deadline - time.monotonic(), 0.0))
