"""Small deterministic environments that the tests can compute by hand; worker processes import this module too."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict


class Counter(gymnasium.Env):
    """The observation is (t, start); reward is t times the action; it terminates when the summed actions reach 3."""

    action_space = Box(-1.0, 1.0, (1,))
    observation_space = Box(-np.inf, np.inf, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.sum, self.start = 0, 0.0, self.np_random.uniform()
        return self._obs(), {}

    def _obs(self):
        return np.array([self.t, self.start])

    def step(self, action):
        self.t += 1
        self.sum += float(action[0])
        done = self.sum >= 3.0
        return self._obs(), self.t * float(action[0]), done, False, {"is_success": done}


class DictObs(Counter):
    observation_space = Dict({"t": Counter.observation_space})


class Broken(Counter):
    """Its observation stops being a number at the third step."""

    def _obs(self):
        return np.array([self.t, np.nan if self.t == 3 else 0.0])


for name, env in {"ToyCounter-v0": Counter, "ToyDict-v0": DictObs, "ToyBroken-v0": Broken}.items():
    gymnasium.register(name, env, max_episode_steps=6)
gymnasium.register("ToyEndless-v0", Counter)
