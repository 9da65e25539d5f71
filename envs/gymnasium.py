"""Any Gymnasium environment, N copies in this process."""

from typing import Any, ClassVar, Unpack

import numpy as np
from numpy.typing import NDArray

from diffpolicy_rl.envs.base import EnvOptions
from diffpolicy_rl.envs.foreign import ForeignEnv
from diffpolicy_rl.envs.rows import RowEnv, execute
from diffpolicy_rl.errors import require_positive


class GymnasiumEnv(ForeignEnv):
    """N copies of a Gymnasium environment, stepped one after the other.

    Actions are a Box; observations are a Box, or a Dict of them as goal environments have it, and come as one vector.
    Episode e of row i starts with ``reset(seed=f(seed, i, e))``. Where the environment's info has ``success`` or
    ``is_success``, ``step``'s info has ``success`` (N,): whether any action of the chunk reported it. Where it has
    ``cost``, as in Safety-Gymnasium, ``step``'s info has ``costs`` and ``cost``.
    """

    backend: ClassVar[str] = "gymnasium"

    def __init__(self, spec_id: str, settings: dict[str, Any] | None = None, **options: Unpack[EnvOptions]) -> None:
        """Make the copies.

        Args:
            spec_id: Gymnasium id, also ``module:MyEnv-v0``.
            settings: keyword arguments of ``gymnasium.make``.
            **options: see ``EnvOptions``.

        Raises:
            UserError: if it cannot be made, has no time limit, its spaces hold more than Boxes, or a count is below 1.
        """
        num_envs = options.get("num_envs", 1)
        require_positive(num_envs=num_envs)
        self._envs = [RowEnv(spec_id, settings or {}) for _ in range(num_envs)]
        super().__init__(spec_id, self._envs[0].facts, **options)
        self._table = np.zeros(num_envs, self._row_type)

    def _execute(self, command: str) -> None:
        execute(command, self._envs, self._table)

    def render(self) -> NDArray[np.uint8]:
        """RGB frame (height, width, 3) of the first row.

        Raises:
            UserError: if the environment was made without ``render_mode="rgb_array"``, or fails to render.
        """
        return self._envs[0].render()

    def close_extras(self) -> None:
        """Close the copies."""
        for env in self._envs:
            env.close()
