"""Where a phase's experience comes from, and what is fitted before an agent is made."""

import torch

from diffpolicy_rl.data.catalog import resolve
from diffpolicy_rl.data.d4rl import read
from diffpolicy_rl.training.build import build_env, build_policy, spec_of
from diffpolicy_rl.training.phase import Phase
from tests.training.tiny_run import tiny


def phase(tmp_path, agent, name, **changes):
    config = tiny(tmp_path / "run", agent, **changes)
    env = build_env(config, 3)
    spec = spec_of(env)
    return Phase(config, name, build_policy(config.policy, spec, 0), env, spec)


def test_what_is_deployed_after_cloning_has_normalisers_that_fit_the_data(tmp_path):
    cloning = phase(tmp_path, "bc", "bc")
    data = read(resolve("hopper"))
    deployed = cloning.agent.deploy().policy
    torch.testing.assert_close(deployed.obs_normalizer.shift, torch.from_numpy(data.observations.mean(0)))
    low, high = data.actions.min(0), data.actions.max(0)
    torch.testing.assert_close(deployed.action_normalizer.scale, torch.from_numpy((high - low) / 2))


def test_demonstrations_fit_the_normalisers_of_who_starts_from_scratch_with_them(tmp_path):
    learning = phase(tmp_path, "rlpd", "online")
    assert learning.agent.policy.obs_normalizer.fitted
    shown = learning.experience.demonstrations
    batch = shown.decisions(torch.arange(len(shown)), gamma=0.99)
    assert batch.action.abs().max() <= 1 + 1e-6
    assert batch.action.shape[1:] == (4, 3)


def test_without_demonstrations_the_box_is_the_unit_of_actions(tmp_path):
    learning = phase(tmp_path, "sac", "online", env={"id": "Pendulum-v1", "num_envs": 3})  # torques of up to 2 Nm
    assert learning.experience.demonstrations is None
    assert learning.agent.policy.action_normalizer.scale.tolist() == [2.0]
    assert not learning.agent.policy.obs_normalizer.fitted
