import io
import re
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from diffpolicy_rl import collect
from diffpolicy_rl.data.d4rl import read
from diffpolicy_rl.envs.make import make_env
from diffpolicy_rl.envs.streams import episode_seeds
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experts import load_expert
from diffpolicy_rl.training.recording import record
from diffpolicy_rl.types import DeployedPolicy


class Lengths(gymnasium.Env):
    """Its seed decides how long an episode is; the observation is (seed, t, action before); odd seeds are cut off."""

    action_space = Box(-0.5, 0.5, (1,))
    observation_space = Box(-np.inf, np.inf, (3,), np.float64)

    def reset(self, *, seed=None, options=None):
        self.seed, self.t = seed % 10_000, 0
        return np.array([self.seed, 0, 0.0]), {}

    def step(self, action):
        self.t += 1
        done, odd = self.t == 1 + self.seed % 29, self.seed % 2 == 1
        return np.array([self.seed, self.t, action[0]]), self.t * float(action[0]), done and not odd, done and odd, {}


gymnasium.register("CollectLengths-v0", Lengths, max_episode_steps=100)


class Chunks(DeployedPolicy):
    """Chunks of three, of which two are executed: t / 100 at the chunk's start, and -t / 100."""

    execute, noise_shape = 2, None

    def forward(self, obs, noise):
        return obs[:, 1].view(-1, 1, 1) / 100 * torch.tensor([1.0, -1.0, 9.0]).view(1, 3, 1)


def lengths_env(num_envs, seed=5):
    return make_env("CollectLengths-v0", num_envs=num_envs, seed=seed)


def starts(data):
    return np.concatenate([[0], data.episode_ends()[:-1]])


@pytest.fixture
def expert(tmp_path):
    """A random actor for Hopper whose means are often close to the bounds."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"latent_pi.0": (16, 11), "mu": (3, 16), "log_std": (3, 16)}
    weights = {}
    for name, shape in shapes.items():
        weights[f"actor.{name}.weight"] = torch.randn(shape, generator=generator) / 2
        weights[f"actor.{name}.bias"] = torch.randn(shape[0], generator=generator) / 2
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with zipfile.ZipFile(tmp_path / "expert.zip", "w") as archive:
        archive.writestr("policy.pth", buffer.getvalue())
    return tmp_path / "expert.zip"


def hopper(expert, tmp_path, *words, name="demos.hdf5"):
    given = [f"expert={expert}", "env=Hopper-v5", "episodes=7", "num_envs=3", "seed=2", f"out={tmp_path / name}"]
    collect.main([word for word in given if word.partition("=")[0] not in "".join(words)] + list(words))
    return read(tmp_path / name)


@pytest.mark.parametrize(("num_envs", "episodes", "quota"), [(3, 11, [4, 4, 3]), (4, 4, [1] * 4), (1, 5, [5])])
def test_every_env_gives_its_first_episodes(num_envs, episodes, quota):
    data = record(Chunks(), lengths_env(num_envs), episodes, seed=5, action_noise=0.0)
    key = torch.tensor([(row, episode) for row, count in enumerate(quota) for episode in range(count)])
    expected = (episode_seeds(5, key[:, 0], key[:, 1]) % 10_000).numpy()
    first = starts(data)
    np.testing.assert_array_equal(data.observations[first, 0], expected)
    lengths = np.diff(np.append(first, len(data.rewards)))
    np.testing.assert_array_equal(lengths, 1 + expected % 29)
    assert len(data.returns()) == episodes
    ends = data.episode_ends() - 1
    np.testing.assert_array_equal(data.timeouts[ends], expected % 2 == 1)
    np.testing.assert_array_equal(data.terminals[ends], expected % 2 == 0)
    assert data.timeouts.sum() + data.terminals.sum() == episodes


def test_chunks_are_executed_action_by_action_and_end_with_the_episode():
    data = record(Chunks(), lengths_env(3), 9, seed=5, action_noise=0.0)
    t = data.observations[:, 1]
    expected = np.where(t % 2 == 0, t, 1 - t) / np.float32(100)
    np.testing.assert_allclose(data.actions[:, 0], expected.clip(-0.5, 0.5), rtol=1e-6)


def test_what_is_stored_is_what_was_executed():
    data = record(Chunks(), lengths_env(3), 9, seed=5, action_noise=0.4)
    inside = np.delete(np.arange(len(data.rewards)), starts(data))
    np.testing.assert_array_equal(data.observations[inside, 2], data.actions[inside - 1, 0])
    np.testing.assert_allclose(data.rewards, (data.observations[:, 1] + 1) * data.actions[:, 0], rtol=1e-6)
    clean = record(Chunks(), lengths_env(3), 9, seed=5, action_noise=0.0)
    noise = data.actions - clean.actions
    free = abs(data.actions) < 0.5
    assert 0.05 < 1 - free.mean() < 0.5  # some were clipped, to the bound exactly
    assert abs(data.actions).max() == 0.5
    assert len(np.unique(noise[free])) > 0.9 * free.sum()
    assert 0.2 < noise[free].std() < 0.4


@pytest.mark.parametrize("noise", ["0", "0.3"])
def test_replay_in_the_simulator(expert, tmp_path, noise):
    data = hopper(expert, tmp_path, f"action_noise={noise}")
    ends = np.append(0, data.episode_ends())
    assert len(ends) == 8
    env, bounds = make_env("Hopper-v5", num_envs=3, seed=2), [ends[0], ends[3], ends[5], ends[7]]  # quotas 3, 2, 2
    obs, _ = env.reset(seed=2)
    for step in range(max(np.diff(bounds))):
        rows = np.array([start + step for start in bounds[:-1]])
        alive = rows < bounds[1:]
        rows = np.where(alive, rows, 0)
        np.testing.assert_array_equal(obs[alive], data.observations[rows][alive])
        obs, reward, terminated, truncated, _ = env.step(torch.from_numpy(data.actions[rows]).unsqueeze(1))
        np.testing.assert_array_equal(reward[alive], data.rewards[rows][alive])
        np.testing.assert_array_equal(terminated[alive], data.terminals[rows][alive])
        np.testing.assert_array_equal(truncated[alive], data.timeouts[rows][alive])


def test_means_or_samples(expert, tmp_path):
    space = make_env("Hopper-v5").single_action_space
    policy = load_expert(expert, 11, space, stochastic=False)
    for word, equal in (("false", True), ("true", False)):
        data = hopper(expert, tmp_path, f"stochastic={word}", name=f"{word}.hdf5")
        means = policy(torch.from_numpy(data.observations), None)[:, 0]
        assert np.allclose(data.actions, means, atol=1e-5) == equal


def test_same_command_same_file(expert, tmp_path, monkeypatch, capsys):
    contents = []
    for folder, seed in (("a", 2), ("b", 2), ("c", 3)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        words = f"expert=../expert.zip env=Hopper-v5 episodes=5 num_envs=2 out=o.hdf5 seed={seed}".split()
        collect.main(words)
        contents.append(Path("o.hdf5").read_bytes())
        said = capsys.readouterr().out.splitlines()[-1]
        assert re.fullmatch(r"wrote o\.hdf5: 5 episodes, \d+ transitions, return .* MB", said)
    assert contents[0] == contents[1] != contents[2]
    attributes = read(Path("o.hdf5")).attributes
    assert attributes["command"] == "python -m diffpolicy_rl.collect " + " ".join(words)
    assert (attributes["env_id"], attributes["source"], attributes["seed"]) == ("Hopper-v5", "../expert.zip", 3)
    assert {"mujoco", "gymnasium"} <= set(attributes)


def refused(*words):
    with pytest.raises(UserError) as caught:
        collect.main(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals(expert, tmp_path):
    out, given = f"out={tmp_path / 'new.hdf5'}", f"expert={expert}"
    assert "out must be given" in refused(given)
    assert "name either a run or an expert" in refused(out)
    assert "name either a run or an expert" in refused("runs/some", given, out)
    assert "env=<id> must say" in refused(given, out)
    assert "did you mean 'Hopper-v5'?" in refused(given, out, "env=Hoper-v5")
    assert "the task needs (105, 8)" in refused(given, out, "env=Ant-v5")
    assert "the task needs (27, 8)" in refused(given, out, "env=ant")  # another task: configs/env has its options
    assert "did you mean 'sac-hopper'?" in refused("expert=sac-hoper", out, "env=Hopper-v5")
    assert "has observations and actions of width (11, 3), the task needs (17, 6)" in refused(
        given, out, "env=HalfCheetah-v5"
    )
    assert "did you mean 'episodes'?" in refused(given, out, "episode=3")
    for count in (0, -1):
        assert f"episodes={count} collects nothing" in refused(given, out, "env=Hopper-v5", f"episodes={count}")
    assert "there is no run" in refused(str(tmp_path / "runs"), out) or "is not a run" in refused(str(tmp_path), out)
    assert not (tmp_path / "new.hdf5").exists()


def test_a_file_is_not_overwritten(tmp_path):
    (tmp_path / "old.hdf5").write_text("precious")
    assert "old.hdf5 exists already" in refused("expert=sac-hopper", f"out={tmp_path / 'old.hdf5'}")
    assert (tmp_path / "old.hdf5").read_text() == "precious"
