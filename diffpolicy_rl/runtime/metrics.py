"""How fast the server answers, and what it refuses."""

from collections import Counter, deque
from typing import Any

import numpy as np

_KEPT = 10_000  # latencies; older ones no longer count


class Metrics:
    """Counts since the start, and quantiles of the last 10,000 answers.

    Attributes:
        counts: by name: clients, answered, refused_<status> at the door and failed_<kind> of requests.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._infer: deque[float] = deque(maxlen=_KEPT)
        self._total: deque[float] = deque(maxlen=_KEPT)

    def answered(self, infer_s: float, total_s: float) -> None:
        """Note a reply: seconds in the policy, and from the request's receipt to the handing over of its reply."""
        self.counts["answered"] += 1
        self._infer.append(infer_s)
        self._total.append(total_s)

    def report(self) -> dict[str, Any]:
        """The counts, and ``infer_ms`` and ``total_ms`` with p50, p95 and p99 once there are any."""
        times = {"infer_ms": self._infer, "total_ms": self._total}
        return dict(self.counts) | {name: quantiles(1e3 * np.array(kept)) for name, kept in times.items() if kept}


def quantiles(values: Any) -> dict[str, float]:
    """p50, p95 and p99 of a list or array."""
    return dict(zip(("p50", "p95", "p99"), np.quantile(values, (0.5, 0.95, 0.99)).tolist(), strict=True))
