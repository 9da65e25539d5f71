"""Any Gymnasium environment, N copies in this process."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from diffpolicy_rl.envs.base import require_positive
from diffpolicy_rl.envs.foreign import ForeignEnv, RowEnv, execute
from diffpolicy_rl.errors import UserError


class GymnasiumEnv(ForeignEnv):
    """N copies of a Gymnasium environment with Box spaces, stepped one after the other; observations are flattened.

    Episode e of row i starts with ``reset(seed=f(seed, i, e))``. Where the environment's info has ``success`` or
    ``is_success``, ``step``'s info has ``success`` (N,): whether any action of the chunk reported it.
    """

    backend: ClassVar[str] = "gymnasium"

    def __init__(
        self,
        spec_id: str,
        settings: dict[str, Any] | None = None,
        *,
        num_envs: int = 1,
        chunk: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        history: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make the copies.

        Args:
            spec_id: Gymnasium id, also ``module:MyEnv-v0``.
            settings: keyword arguments of ``gymnasium.make``.
            num_envs: N.
            chunk: A.
            device: where returned tensors lie.
            seed: seed of the rows' random streams.
            history: To.
            dtype: floating type of what is returned.

        Raises:
            UserError: if it cannot be made, has no time limit, or its spaces are no Boxes.
        """
        require_positive(spec_id, num_envs=num_envs)
        self._envs = [RowEnv(spec_id, settings or {}) for _ in range(num_envs)]
        facts = self._envs[0].facts
        super().__init__(
            spec_id, facts.action_space, facts.obs_dim, facts.max_episode_steps,
            num_envs=num_envs, chunk=chunk, device=device, seed=seed, history=history, dtype=dtype,
        )  # fmt: skip
        self._table = np.zeros(num_envs, facts.row_type(chunk))

    def _execute(self, command: str) -> None:
        execute(command, self._envs, self._table)

    def render(self) -> NDArray[np.uint8]:
        """RGB frame (height, width, 3) of the first row.

        Raises:
            UserError: if the environment was made without ``render_mode="rgb_array"``.
        """
        frame = self._envs[0].render()
        if frame is None:
            raise UserError(f"{self.spec_id} cannot be rendered; make it with render_mode='rgb_array'.")
        return frame

    def close_extras(self) -> None:
        """Close the copies."""
        for env in self._envs:
            env.close()
