"""The other way round: Stable-Baselines3 trains on our vector environments.

``SB3VecEnv(make_env("Hopper-v5", num_envs=8))`` goes where Stable-Baselines3 takes an environment, and inside its own
wrappers (``VecMonitor``, ``VecNormalize``).
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import torch
from numpy.typing import NDArray

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.types import VecEnv

try:
    from stable_baselines3.common.vec_env import VecEnv as SB3Base
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
except ImportError as _error:
    raise UserError(f"Stable-Baselines3 is an extra: pip install 'diffpolicy_rl[experts]' ({_error})") from _error


class SB3VecEnv(SB3Base):
    """One of our vector environments, by the conventions of Stable-Baselines3.

    Arrays are NumPy's and actions single ones (N, D). Where an episode has ended, the info of its row holds
    ``terminal_observation``, and ``TimeLimit.truncated`` tells whether the time limit ended it; ``is_success`` is there
    where the task reports it.

    Attributes:
        env: ours.
    """

    def __init__(self, env: VecEnv) -> None:
        """Wrap an environment that was made for this purpose.

        Args:
            env: ours; its chunk is 1.

        Raises:
            UserError: if it executes longer chunks.
        """
        if env.chunk != 1:
            raise UserError(f"{env.spec_id} was made with chunk={env.chunk}, but Stable-Baselines3 acts step by step")
        self.env = env
        self._action = torch.empty(0)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.render_mode, self.metadata = "rgb_array", {"render_modes": ["rgb_array"]}

    def reset(self) -> NDArray[Any]:
        """Start new episodes in all rows; after ``seed(n)``, with the random streams of that seed."""
        obs, _ = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        return _array(obs)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take up the actions (N, D) of the next ``step_wait``."""
        self._action = torch.from_numpy(actions)[:, None]

    def step_wait(self) -> VecEnvStepReturn:
        """Make the step: observations (N, O), rewards (N,), dones (N,) and one info per row."""
        obs, reward, terminated, truncated, info = self.env.step(self._action)
        done, final = _array(terminated | truncated), _array(info["final_obs"])
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": flag} for flag in truncated.tolist()]
        for row in done.nonzero()[0]:
            infos[row]["terminal_observation"] = final[row]
        if "success" in info:
            for row, won in enumerate(info["success"].tolist()):
                infos[row]["is_success"] = won
        return _array(obs), _array(reward), done, infos

    def close(self) -> None:
        """Close ours."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of ours, once for each of the rows."""
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse: the rows are one environment."""
        raise UserError(f"{self.env.spec_id}: its rows have no {attr_name} of their own; give settings to make_env")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse: the rows are one environment."""
        raise UserError(f"{self.env.spec_id}: its rows have no methods of their own; call .env.{method_name} instead")

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """No row is: wrappers of single environments do not fit."""
        return [False] * len(list(self._get_indices(indices)))

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        """The frame of the first row."""
        return [self.env.render()]


def _array(value: Any) -> NDArray[Any]:
    """A tensor as NumPy has it; what ``step`` returns is a copy already."""
    return value.cpu().numpy()
