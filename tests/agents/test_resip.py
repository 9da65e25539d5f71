import dataclasses

import pytest
import torch

from diffpolicy_rl.agents.resip import ResiP, ResiPConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.buffers import RolloutBuffer
from diffpolicy_rl.policies.flow import RectifiedFlow
from tests.agents.bandit import bandit_rollout
from tests.agents.bases import always, numbered, two_modes

SMALL = ResiPConfig(
    scale=0.1, minibatch=128, epochs=4, lr=3e-3, final_lr=3e-3, critic_hidden=(16,), hidden=(16, 16, 16)
)


def settled(agent, num_envs=256):
    """Executed actions (N, D) without exploration, at observation 0, in env units."""
    deployed, obs = agent.deploy(), torch.zeros(num_envs, 3)
    chunk = deployed(obs, deployed.sample_noise(num_envs, torch.Generator().manual_seed(7)))
    return deployed.correct(obs, chunk[:, 0])


def test_at_first_the_deployed_policy_is_the_base_bit_for_bit(make_policy):
    policy = make_policy(RectifiedFlow(), 4)
    policy.obs_normalizer.fit(torch.randn(50, 3), "z_score")
    policy.action_normalizer.fit(torch.randn(50, 2), "min_max")
    agent, obs = ResiP(policy, SMALL, iterations=1, seed=0), torch.randn(9, 3)
    deployed, base = agent.deploy(), policy.deploy()
    noise = deployed.sample_noise(9, torch.Generator().manual_seed(0))
    chunk = deployed(obs, noise)
    assert deployed.per_step
    assert torch.equal(chunk, base(obs, noise))
    for action in chunk.unbind(1):
        assert torch.equal(deployed.correct(obs, action), action)


def test_correction_is_the_residuals_mean_in_normalised_units(make_policy):
    policy = make_policy(RectifiedFlow(), 4)
    policy.obs_normalizer.fit(torch.randn(50, 3), "z_score")
    policy.action_normalizer.fit(torch.randn(50, 2), "min_max")
    agent, obs, action = ResiP(policy, SMALL, iterations=1, seed=0), 5 * torch.randn(9, 3), torch.randn(9, 2)
    for parameter in agent.residual.net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    planned = policy.action_normalizer(action)
    mean = agent.residual.net.net(torch.cat([policy.obs_normalizer(obs).clamp(-3, 3), planned], -1))
    expected = policy.action_normalizer.inverse(planned + 0.1 * mean)
    torch.testing.assert_close(agent.deploy().correct(obs, action), expected)


def test_what_is_executed_and_what_is_kept_by_hand():
    agent, obs = ResiP(numbered(), dataclasses.replace(SMALL, scale=0.5), iterations=1, seed=0), torch.randn(64, 3)
    kept = []
    for _ in range(4):
        action, extras = agent.act(obs, explore=True)
        u = extras["chain"][:, -1, 0]
        assert torch.equal(action[:, 0], extras["base_action"] + 0.5 * u)
        normal = torch.distributions.Normal(0.0, SMALL.std)
        torch.testing.assert_close(extras["log_prob"][:, 0], normal.log_prob(u).sum(-1))
        kept.append(extras)
    base, first = torch.stack([extras["base_action"] for extras in kept]), kept[0]["base_action"]
    assert torch.equal(base[:3], first + torch.arange(3.0).view(3, 1, 1))  # three of a chunk, then a new one
    assert not torch.equal(base[3], first + 3)
    assert [extras["going_on"].tolist() for extras in kept] == [[True] * 64, [True] * 64, [False] * 64, [True] * 64]
    assert torch.equal(kept[0]["planned"], base[1])
    assert u.abs().max() > 2 * SMALL.std  # not clipped


def test_queues_of_other_envs_survive_a_reset():
    agent, obs = ResiP(numbered(), SMALL, iterations=1, seed=0), torch.zeros(4, 3)
    first = agent.act(obs, explore=True)[1]["base_action"]
    agent.reset(torch.tensor([False, True, False, True]))
    second = agent.act(obs, explore=True)[1]["base_action"]
    assert torch.equal(second[::2], first[::2] + 1)
    assert (second[1::2] != first[1::2] + 1).all()
    assert torch.equal(agent.act(obs, explore=True)[1]["base_action"][1::2], second[1::2] + 1)


def test_queues_are_part_of_the_state():
    agent, obs = ResiP(numbered(), SMALL, iterations=1, seed=0), torch.zeros(4, 3)
    agent.act(obs, explore=True)
    copy = ResiP(numbered(), SMALL, iterations=1, seed=5)
    copy.load_state_dict(agent.state_dict())
    for _ in range(4):
        assert torch.equal(agent.act(obs, explore=True)[0], copy.act(obs, explore=True)[0])


def test_advantages_by_hand_with_the_base_actions_that_would_have_followed():
    """Three decisions of three envs: one cut off inside a chunk, one at its end, one that goes on."""
    agent, buffer, rows = ResiP(numbered(), SMALL, iterations=1, seed=0), RolloutBuffer(3), torch.arange(3)
    nothing, seen = torch.zeros(3, dtype=torch.bool), torch.randn(4, 3, 3)
    finals, base = torch.randn(3, 3), []
    for t in range(3):
        _, extras = agent.act(seen[t], explore=True)
        base.append(extras["base_action"])
        cut = (rows == 0) & (t == 1) | (rows == 1) & (t == 2)
        after = torch.where(cut.unsqueeze(1), finals, seen[t + 1])
        buffer.add(seen[t], extras, torch.full((3, 1), t + 1.0), torch.ones(3, dtype=torch.long), nothing, cut, after)
        agent.reset(cut)
    drawn = torch.Generator().set_state(agent.generator.get_state())
    last, final = (agent.policy.sample(torch.zeros(n, 3), generator=drawn)[:, 0] for n in (2, 1))  # chunks that ended
    batch = agent.ppo._prepare(agent._with_base_actions(buffer))

    def value(obs, action):
        return agent.ppo.critic(torch.cat([obs.clamp(-3, 3), action])).item()

    gamma, lam, std = SMALL.gamma, SMALL.lam, agent.ppo.reward_scaler.std
    after = {  # env: what followed each decision, and whether its episode went on
        0: [(seen[1, 0], base[1][0], 1), (finals[0], base[1][0] + 1, 0), (seen[3, 0], base[2][0] + 1, 1)],
        1: [(seen[1, 1], base[1][1], 1), (seen[2, 1], base[2][1], 1), (finals[1], final[0], 0)],
        2: [(seen[1, 2], base[1][2], 1), (seen[2, 2], base[2][2], 1), (seen[3, 2], last[1], 1)],
    }
    for env, followed in after.items():
        advantage = 0.0
        for t in (2, 1, 0):
            obs, action, goes_on = followed[t]
            mine = value(seen[t, env], base[t][env])
            delta = (t + 1) / std + gamma * value(obs, action) - mine
            advantage = delta + gamma * lam * goes_on * advantage
            row = 3 * t + env
            assert batch["advantage"][row].item() == pytest.approx(advantage, rel=1e-4)
            assert batch["returns"][row].item() == pytest.approx(advantage + mine, rel=1e-4)


def test_only_the_residual_learns(make_policy):
    agent = ResiP(make_policy(RectifiedFlow(), 4), SMALL, iterations=5, seed=0)
    base = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    residual = {name: value.clone() for name, value in agent.residual.state_dict().items()}
    for _ in range(2):
        agent.update(bandit_rollout(agent))
    assert all(torch.equal(base[name], value) for name, value in agent.policy.state_dict().items())
    changed = {name for name, value in agent.residual.state_dict().items() if not torch.equal(residual[name], value)}
    assert changed == {name for name in residual if name.startswith("net.")}  # not the std


def test_the_first_ratio_of_an_update_is_one(make_policy):
    config = dataclasses.replace(SMALL, epochs=1, minibatch=10_000)
    agent = ResiP(make_policy(RectifiedFlow(), 4), config, iterations=5, seed=0)
    for _ in range(3):
        assert agent.update(bandit_rollout(agent))["ppo/first_ratio_error"] < 3e-6


def test_corrects_a_biased_base():
    agent = ResiP(always(0.35), dataclasses.replace(SMALL, scale=0.2), iterations=30, seed=0)
    assert settled(agent).allclose(torch.tensor(0.35))
    for _ in range(30):
        agent.update(bandit_rollout(agent, target=0.5))
    assert (settled(agent) - 0.5).abs().max() < 0.03


def test_a_small_residual_does_not_change_the_bases_mind():
    """Only one of two modes is rewarded, and nothing between them."""
    agent, obs, ended = ResiP(two_modes(), SMALL, iterations=30, seed=0), torch.zeros(64, 3), torch.ones(64).bool()
    for _ in range(30):
        buffer = RolloutBuffer(4)
        for _ in range(4):
            action, extras = agent.act(obs, explore=True)
            rewards = ((action - 0.7).abs().amax(-1) < 0.3).float()
            buffer.add(obs, extras, rewards, torch.ones(64, dtype=torch.long), ended, ~ended, obs)
            agent.reset(ended)
        agent.update(buffer)
    good = (settled(agent)[:, 0] > 0.3).float().mean()
    assert 0.4 < good < 0.6


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"std": -1.0}, {"hidden": (8, 16)}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))) as refusal:
        ResiP(always(0.0), dataclasses.replace(SMALL, **settings), iterations=1, seed=0)
    assert "\n" not in str(refusal.value)
