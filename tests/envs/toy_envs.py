"""Small deterministic environments that the tests can compute by hand; worker processes import this module too."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


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


class Goal(Counter):
    """As Counter; the observation is a tree, whose numbers count 0, 1, 2, ... in Gymnasium's order, plus t."""

    observation_space = Dict(
        {
            "observation": Dict({"b": Box(-np.inf, np.inf, (2, 2)), "a": Box(-np.inf, np.inf, (1,), np.float64)}),
            "achieved_goal": Box(-np.inf, np.inf, (2,), np.float64),
        }
    )

    def _obs(self):
        observation = {"b": self.t + np.array([[3.0, 4.0], [5.0, 6.0]]), "a": self.t + np.array([2.0])}
        return {"observation": observation, "achieved_goal": self.t + np.array([0.0, 1.0])}


class DictObs(Counter):
    observation_space = Dict({"t": Counter.observation_space, "mode": Discrete(2)})


class Passing(Counter):
    """It is a success at the second step alone, and goes on."""

    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, False, False, {"success": self.t == 2}


class Costly(Counter):
    """A step costs as much as its action pushes."""

    def step(self, action):
        *result, info = super().step(action)
        return *result, info | {"cost": 2 * float(action[0])}


class Broken(Counter):
    """Its observation stops being a number at the third step."""

    def _obs(self):
        return np.array([self.t, np.nan if self.t == 3 else 0.0])


class Raising(Counter):
    """No step of it works."""

    def step(self, action):
        raise RuntimeError("simulator failure")


class Matrix(gymnasium.Env):
    """The observation (2, 2) holds the summed actions (2, 1), in two columns."""

    action_space = Box(-1.0, 1.0, (2, 1))
    observation_space = Box(-np.inf, np.inf, (2, 2))

    def reset(self, *, seed=None, options=None):
        self.sum = np.zeros((2, 1), np.float32)
        return np.tile(self.sum, 2), {}

    def step(self, action):
        assert action.shape == (2, 1)
        self.sum = self.sum + action
        return np.tile(self.sum, 2), 0.0, False, False, {}


for env in (Counter, Matrix, Goal, DictObs, Passing, Costly, Broken, Raising):
    gymnasium.register(f"Toy{env.__name__}-v0", env, max_episode_steps=6)
gymnasium.register("ToyEndless-v0", Counter)
