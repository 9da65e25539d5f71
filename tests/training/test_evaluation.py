import json

import gymnasium
import pytest
import torch

from diffpolicy_rl import evaluate, evaluate_policy, load, make_env, train
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.evaluation import Episode, describe, summarize
from diffpolicy_rl.training.logger import read_metrics
from diffpolicy_rl.types import DeployedPolicy
from tests.training.tiny_run import tiny


class Noisy(DeployedPolicy):
    """Acts with half its noise, so that an episode depends on every number of its stream."""

    def __init__(self, execute=4):
        super().__init__()
        self.execute, self.noise_shape = execute, (4, 3)

    def forward(self, obs, noise):
        return 0.5 * noise + 0.1 * obs[:, :1, None]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    return folder, train.train(tiny(folder))


def test_evaluate_repeats_the_evaluation_that_training_logged(run):
    folder, _ = run
    logged = [record for record in read_metrics(folder / "metrics.jsonl") if "eval/mean" in record][-1]
    evaluate.main([str(folder), f"episodes={logged['eval/episodes']}", f"seed={logged['eval/seed']}"])
    result = json.loads((folder / f"evaluation-last-s{logged['eval/seed']}.json").read_text())
    for key in ("mean", "std", "ci_low", "ci_high"):
        assert result[key] == logged[f"eval/{key}"]


@pytest.mark.parametrize("which", ["base", "last", "best"])
def test_evaluate_repeats_the_summary(run, which, tmp_path):
    folder, summary = run
    expected = summary["final" if which == "last" else which]
    out = tmp_path / "result.json"
    evaluate.main([str(folder), f"which={which}", "episodes=6", f"seed={expected['seed']}", f"out={out}"])
    assert json.loads(out.read_text())["returns"] == expected["returns"]


def test_chunked_and_single_steps_play_the_same_episodes():
    env = {chunk: make_env("Hopper-v5", num_envs=3, chunk=chunk) for chunk in (1, 4)}
    results = [evaluate_policy(Noisy(), env[chunk], episodes=9, seed=5) for chunk in (1, 4)]
    assert results[0]["lengths"] == results[1]["lengths"]
    assert results[0]["returns"] == pytest.approx(results[1]["returns"], rel=1e-6)


def test_first_episodes_of_each_env_count_not_the_quickest():
    env = make_env("Hopper-v5", num_envs=4, chunk=4)
    few = evaluate_policy(Noisy(), env, episodes=8, seed=0)
    many = evaluate_policy(Noisy(), env, episodes=24, seed=0)
    assert many["episodes"] == 24
    per_env = torch.tensor(many["returns"]).view(4, 6)[:, :2]
    assert few["returns"] == per_env.flatten().tolist() or few["returns"] == pytest.approx(per_env.flatten().tolist())


def test_an_episode_does_not_depend_on_the_other_rows():
    alone = evaluate_policy(Noisy(), make_env("Hopper-v5", num_envs=1, chunk=4), episodes=2, seed=0)
    among = evaluate_policy(Noisy(), make_env("Hopper-v5", num_envs=3, chunk=4), episodes=6, seed=0)
    assert alone["lengths"] == among["lengths"][:2]
    assert alone["returns"] == pytest.approx(among["returns"][:2])


class Early(gymnasium.Env):
    """Wins at its first step and goes on to its limit of six."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.observation_space.low, {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.low, 1.0, False, False, {"success": self.steps == 1}


def test_success_at_any_time_counts():
    if "Early-v0" not in gymnasium.registry:
        gymnasium.register("Early-v0", Early, max_episode_steps=6)
    result = evaluate_policy(Noisy(execute=2), make_env("Early-v0", num_envs=2, chunk=2), episodes=4, seed=0)
    assert (result["success"], result["lengths"], result["mean"]) == (1.0, [6] * 4, 6.0)


def test_statistics_by_hand():
    result = summarize([Episode(1.0, 5, True, 4.0), Episode(3.0, 7, False, 0.0)], seed=2)
    assert result["mean"] == 2.0
    assert result["std"] == pytest.approx(2**0.5)
    assert result["ci_high"] - result["mean"] == pytest.approx(1.96)  # 1.96 * sqrt(2) / sqrt(2)
    assert (result["lengths"], result["success"], result["seed"], result["episodes"]) == ([5, 7], 0.5, 2, 2)
    assert (result["cost"], result["costs"]) == (2.0, [4.0, 0.0])
    assert result["cost_ci_low"] == pytest.approx(2 - 1.96 * 2)  # the std is 8^0.5
    assert "success 50.0%, cost 2.0 [-1.9, 5.9], 2 episodes" in describe(result)


def test_costs_of_an_episode_are_those_of_its_steps():
    env = make_env("SafeHopper-v5", num_envs=2, chunk=4, speed_limit=0.0)
    result = evaluate_policy(Noisy(), env, episodes=4, seed=0)
    single = evaluate_policy(Noisy(), make_env("SafeHopper-v5", num_envs=2, speed_limit=0.0), episodes=4, seed=0)
    assert result["costs"] == single["costs"]
    assert all(0 < cost < length for cost, length in zip(result["costs"], result["lengths"], strict=True))
    assert "cost" not in evaluate_policy(Noisy(), make_env("Hopper-v5", chunk=4), episodes=1, seed=0)


def test_chunk_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="executes 4 actions per call, the env takes 2"):
        evaluate_policy(Noisy(), make_env("Hopper-v5", chunk=2), episodes=1, seed=0)


def test_evaluating_what_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        evaluate.main([str(tmp_path / "nothing")])


def test_loaded_policy_is_the_one_that_was_trained(run):
    folder, _ = run
    policy = load(folder)
    obs, noise = torch.randn(2, 11), policy.sample_noise(2, torch.Generator().manual_seed(0))
    assert policy(obs, noise).shape == (2, 4, 3)
    assert policy.noise_shape == (4, 3)
    assert not torch.equal(load(folder, "base")(obs, noise), policy(obs, noise))
    assert not any(parameter.requires_grad for parameter in policy.parameters())
