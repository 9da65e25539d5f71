"""Sets made by recipe, of what agents lived through, and with costs."""

import dataclasses
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffpolicy_rl import cli, collect, make_env, train
from diffpolicy_rl.data.__main__ import main as data
from diffpolicy_rl.data.d4rl import read
from diffpolicy_rl.data.dataset import ChunkDataset
from diffpolicy_rl.data.replayed import episodes
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.replay import ReplayBuffer
from diffpolicy_rl.training import compose
from diffpolicy_rl.training.config import DataConfig
from diffpolicy_rl.training.logger import read_metrics
from diffpolicy_rl.training.rollout import Rollout
from tests.training.tiny_run import POLICIES, tiny

FILES = Path(__file__).parents[1] / "configs" / "data"
RECIPES = [file.stem for file in sorted(FILES.glob("*.yaml")) if "\nrecipe:" in file.read_text()]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_followed(name):
    assert f"python -m diffpolicy_rl.collect recipe={name}" in compose.options("data")[name]
    words = [f"recipe={name}"]
    parts = collect._recipe(cli.build(collect.CollectConfig, {"recipe": name}), words)
    assert {part.out for part in parts} == {f"data_out/{name}.hdf5"}
    assert [part.seed for part in parts] == list(range(len(parts)))
    for part in parts:
        run = part.run or part.replay
        assert (run is None) == (part.train is None)
        if part.train:
            (config,) = compose.compose(shlex.split(part.train), sweep=False)
            assert (config.run_dir, config.diary) == (run, part.replay is not None)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A recipe of a careful and a hasty driver, under the name "small"."""
    parts = (
        {"expert": "scripted-point_robot", "episodes": 3},
        {"expert": "scripted-point_robot_hasty", "env": "point_robot_anywhere", "episodes": 4},
    )
    chosen = SimpleNamespace(data=DataConfig(str(tmp_path / "small.hdf5"), recipe=parts))
    real = compose.compose
    monkeypatch.setattr(
        compose, "compose", lambda words, sweep: [chosen] if words == ["data=small"] else real(words, sweep)
    )
    return tmp_path / "small.hdf5"


def test_parts_lie_end_to_end(small, tmp_path, capsys):
    collect.main(["recipe=small", "seed=5", "num_envs=2"])
    said = capsys.readouterr().out
    made = read(small)
    alone = []
    for index, words in enumerate(("scripted-point_robot episodes=3", "scripted-point_robot_hasty episodes=4")):
        out = tmp_path / f"{index}.hdf5"
        where = "env=point_robot_anywhere" if index else "env=point_robot"
        collect.main([*f"expert={words} seed={5 + index} num_envs=2".split(), where, f"out={out}"])
        alone.append(read(out))
    for name in ("observations", "actions", "rewards", "costs", "terminals", "timeouts"):
        np.testing.assert_array_equal(getattr(made, name), np.concatenate([getattr(part, name) for part in alone]))
    assert [part["episodes"] for part in json.loads(made.attributes["parts"])] == [3, 4]
    assert made.attributes["command"] == "python -m diffpolicy_rl.collect recipe=small seed=5 num_envs=2"
    costs = made.episode_costs()
    assert (made.attributes["cost_mean"], made.attributes["cost_max"]) == (costs.mean(), costs.max())
    assert f"{(costs == 0).mean():.0%} of the episodes cost nothing" in said
    data(["info", str(small)])
    assert f"cost {costs.mean():.1f}" in capsys.readouterr().out


def test_costs_reach_the_agent(tmp_path):
    """As they were in the simulator, through the file, into what a decision cost."""
    out = tmp_path / "a.hdf5"
    words = f"expert=scripted-point_robot_hasty env=point_robot episodes=2 num_envs=1 stochastic=false out={out}"
    collect.main(words.split())
    stored = read(out)
    env = make_env("PointRobot-v0")
    env.reset(seed=0)
    seen = [env.step(torch.from_numpy(action).view(1, 1, 2))[4]["cost"].item() for action in stored.actions]
    assert stored.costs.tolist() == seen
    assert 0 < sum(seen) < len(seen)
    costs = ChunkDataset(stored, 4).decisions(4).decisions(torch.tensor([0, 20, 25]), 0.99).extras["costs"]
    assert costs.tolist() == [seen[0:4], seen[20:24], seen[25:29]]


class Pusher:
    """Acts at random; only what a rollout asks of an agent."""

    data, policy = "replay", torch.nn.Identity()

    def act(self, obs, *, explore):
        action = 2 * torch.rand(len(obs), 2, 3) - 1
        return action, {"action": action}

    def reset(self, done):
        pass


def test_costs_stay_in_replay():
    env, replay = make_env("SafeHopper-v5", num_envs=3, chunk=2, speed_limit=0.0), ReplayBuffer(100)
    seen, step = [], env.step
    env.step = lambda action: (seen.append(step(action)), seen[-1])[1]
    Rollout(env, 0, 20, replay).collect(Pusher())
    costs = replay.decisions(torch.arange(60), 0.99).extras["costs"]
    assert torch.equal(costs, torch.cat([result[4]["costs"] for result in seen]))
    assert set(costs.flatten().tolist()) == {0.0, 1.0}


def buffer(capacity):
    """Five steps of two envs: the first env's episodes have 2, 2 and 1 steps, the second's one goes on for all."""
    replay = ReplayBuffer(capacity)
    for step in range(5):
        obs = torch.tensor([[step, 0.0], [step, 1.0]])
        over = torch.tensor([step % 2 == 1, False])
        extras = {"action": obs.unsqueeze(1) / 10, "costs": obs[:, :1]}
        ends = {"terminated": over & (step == 1), "truncated": over & (step == 3)}
        replay.add(obs, extras, obs.sum(1, keepdim=True), torch.ones(2, dtype=torch.long), **ends, final_obs=obs + 0.5)
    return replay.state_dict()


def test_episodes_of_a_replay():
    made = episodes(buffer(100), lambda action: 2 * action, "run")
    assert made.observations.tolist() == [[0, 0], [1, 0], *([step, 1] for step in range(5)), [2, 0], [3, 0], [4, 0]]
    np.testing.assert_allclose(made.actions, made.observations / 5)
    np.testing.assert_allclose(made.rewards, made.observations.sum(1))
    np.testing.assert_allclose(made.costs, made.observations[:, 0])
    assert np.flatnonzero(made.terminals).tolist() == [1]
    assert np.flatnonzero(made.timeouts).tolist() == [6, 8, 9]


def test_episodes_of_a_ring_that_has_forgotten():
    made = episodes(buffer(7), lambda action: action, "run")  # steps 0 and, of the first env, 1 are overwritten
    assert made.observations.tolist() == [*([step, 1] for step in range(1, 5)), [2, 0], [3, 0], [4, 0]]


def test_a_diary_is_what_happened(tmp_path):
    single = POLICIES["ppo"] | {"horizon": 1, "execute": 1}
    summary = train.train(tiny(tmp_path / "run", "ppo", policy=single, diary=True))
    out = tmp_path / "lived.hdf5"
    collect.main([f"replay={tmp_path / 'run'}", f"out={out}"])
    made = read(out)
    assert (made.attributes["env_id"], len(made.rewards)) == ("Hopper-v5", summary["env_steps"])
    env, starts = make_env("Hopper-v5"), np.concatenate([[0], made.episode_ends()[:-1]])
    for start, end in list(zip(starts, made.episode_ends(), strict=True))[:3]:
        env.reset()
        obs = torch.from_numpy(made.observations[start]).double()
        env.set_state(qpos=torch.cat([torch.zeros(1), obs[:5]]).view(1, -1), qvel=obs[5:].view(1, -1))
        for row in range(start, end):
            np.testing.assert_allclose(env.observation()[0], made.observations[row], atol=1e-3)
            _, reward, terminated, _, _ = env.step(torch.from_numpy(made.actions[row]).view(1, 1, 3))
            assert reward.item() == pytest.approx(made.rewards[row], abs=1e-3)
            assert terminated.item() == made.terminals[row]
    assert "rollout/return" in read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]


def test_a_policy_acts_in_another_env(tmp_path):
    train.train(tiny(tmp_path / "run"))
    out = tmp_path / "a.hdf5"
    collect.main([str(tmp_path / "run"), "env=safe_hopper", "episodes=2", f"out={out}"])
    made = read(out)
    assert (made.attributes["env_id"], made.costs is None) == ("SafeHopper-v5", False)


def test_scale_and_noise(tmp_path):
    outs = []
    for scale in ("1", "0.5"):
        outs.append(tmp_path / f"{scale}.hdf5")
        words = f"expert=scripted-point_maze episodes=2 stochastic=false action_scale={scale} out={outs[-1]}"
        collect.main(words.split())
    full, half = map(read, outs)
    np.testing.assert_allclose(half.actions[0], full.actions[0] / 2, rtol=1e-6)
    assert len(half.rewards) > len(full.rewards)


def refused(*words):
    with pytest.raises(UserError) as caught:
        collect.main(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "episodes has no effect beside recipe=" in refused("recipe=small", "episodes=3")
    assert "did you mean 'hopper_medium'?" in refused("recipe=hopper_medum")
    assert "data=hopper has no recipe" in refused("recipe=hopper")
    missing = refused("recipe=hopper_medium_replay")
    assert missing.startswith("there is no run at runs/hopper_ppo; make it: python -m diffpolicy_rl.train agent=ppo ")
    assert "name either" in refused("recipe=small", "replay=runs/a")
    assert "episodes has no effect beside replay=" in refused("replay=runs/a", "episodes=3", "out=a.hdf5")
    train.train(tiny(tmp_path / "run"))
    assert "train with diary=true" in refused("replay=run", "out=a.hdf5")
    assert "was made for (11,)" in refused("run", "env=safe_halfcheetah", "out=a.hdf5")
    made = compose.compose(["data=hopper_medium"], sweep=False)[0].data
    with pytest.raises(UserError, match=r"make it: python -m diffpolicy_rl.collect recipe=hopper_medium"):
        train.train(tiny(tmp_path / "new", data=dataclasses.asdict(made)))
    chunks = {"action": torch.zeros(3, 4, 2)}
    with pytest.raises(UserError, match="chunks of 4"):
        episodes({"fields": chunks, "added": 3}, lambda action: action, "run")
    assert not (tmp_path / "a.hdf5").exists()
