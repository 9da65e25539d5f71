import dataclasses

import pytest
import torch

from diffpolicy_rl.agents.dppo import DPPO, DPPOConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import Chain
from tests.agents.bandit import bandit_rollout, distance

SMALL = DPPOConfig(
    minibatch=128, epochs=4, lr=1e-3, final_lr=1e-3, critic_hidden=(32, 32, 32), clip=0.2, clip_first=0.2
)


def build(make_policy, moves, process=None, steps=5, **settings):
    config = dataclasses.replace(SMALL, trained_moves=moves, **settings)
    policy = make_policy(process or DDPM(levels=steps), steps)
    return DPPO(policy, config, iterations=60, seed=0)


@pytest.mark.parametrize(("moves", "lr"), [(1, 1e-2), (2, 1e-3), (5, 1e-3)])
def test_learns_a_bandit(make_policy, moves, lr):
    agent = build(make_policy, moves, lr=lr, final_lr=lr)
    before = distance(agent)
    for _ in range(40):
        agent.update(bandit_rollout(agent))
    assert before > 0.25
    assert distance(agent) < 0.08


@pytest.mark.parametrize("process", [DDPM(levels=5), DDPM(levels=5, prediction="x0", schedule="vp"), RectifiedFlow()])
@pytest.mark.parametrize("moves", [1, 3, 5])
def test_the_first_ratio_of_an_update_is_one(make_policy, process, moves):
    agent = build(make_policy, moves, process, epochs=1, minibatch=10_000)
    for _ in range(3):
        assert agent.update(bandit_rollout(agent))["ppo/first_ratio_error"] < 1e-6


def test_clips_and_discounts_by_hand(make_policy):
    agent = build(make_policy, 3, clip=0.01, clip_first=0.001, denoising_discount=0.9)
    # tau = 0, 1/2, 1: (e^1.5 - 1) / (e^3 - 1) = 3.481689 / 19.085537 = 0.1824255
    assert agent.clips.tolist() == pytest.approx([0.001, 0.001 + 0.009 * 0.1824255, 0.01])
    assert agent.discounts.tolist() == pytest.approx([0.81, 0.9, 1.0])
    only = build(make_policy, 1, clip=0.01, clip_first=0.001)
    assert only.clips.tolist() == pytest.approx([0.01])
    assert only.discounts.tolist() == [1.0]


def test_only_the_last_moves_learn(make_policy):
    agent = build(make_policy, 2)
    obs, draw = torch.zeros(16, 3), lambda: torch.Generator().manual_seed(3)
    before = agent.policy.sample_chain(obs, generator=draw())[0].states
    agent.update(bandit_rollout(agent))
    after = agent.policy.sample_chain(obs, generator=draw())[0].states
    assert torch.equal(before[:, :4], after[:, :4])  # the first state and three frozen moves
    assert (before[:, 4:] - after[:, 4:]).abs().amax(dim=(0, 2, 3)).min() > 1e-4


def test_every_move_is_made_by_one_net(make_policy):
    agent = build(make_policy, 2)
    calls = []
    for name in ("frozen_net", "net"):
        net = getattr(agent.policy, name)
        original = net.denoise
        net.denoise = lambda x, context, name=name, run=original: calls.append(name) or run(x, context)
    agent.act(torch.zeros(4, 3), explore=True)
    assert calls == ["frozen_net"] * 3 + ["net"] * 2


def test_fewer_sampling_steps_switch_nets_at_the_same_time(make_policy):
    agent = build(make_policy, 2, DDPM(levels=4), steps=4)  # frozen before t = 1/2
    with torch.no_grad():
        agent.policy.net.trunk[-1].bias.add_(1.0)
    frozen, calls = agent.policy.frozen_net, []
    original = frozen.denoise
    frozen.denoise = lambda x, context: calls.append(1) or original(x, context)
    agent.policy.sample(torch.zeros(1, 3), torch.zeros(1, 4, 2), steps=2)
    assert len(calls) == 1


def test_deployed_policy_is_the_one_that_learned(make_policy):
    agent = build(make_policy, 2, deploy_eta=1.0)
    agent.update(bandit_rollout(agent))
    deployed, obs = agent.deploy(), torch.randn(6, 3)
    assert deployed.noise_shape == (6, 4, 2)
    noise = torch.randn(6, 6, 4, 2)
    torch.testing.assert_close(deployed(obs, noise), agent.policy.sample(obs, noise, eta=1.0))


def test_regulariser_holds_on_to_the_pretrained_moves(make_policy):
    def drift(weight):
        torch.manual_seed(0)
        agent = build(make_policy, 2, bc_weight=weight)
        base: GenerativePolicy = agent.policy.frozen_copy()
        for _ in range(10):
            agent.update(bandit_rollout(agent))
        chain, before = base.sample_chain(torch.zeros(256, 3), generator=torch.Generator().manual_seed(5))
        now, _ = agent.policy.chain_log_prob(torch.zeros(256, 3), Chain(chain.states[:, 3:], 3))
        return (before[:, 3:] - now).mean().item()

    assert 0 < drift(0.1) < 0.5 * drift(0.0)


def test_regulariser_is_part_of_the_state(make_policy):
    agent = build(make_policy, 2, bc_weight=0.1)
    assert "base" in agent.state_dict()
    assert "base" not in build(make_policy, 2).state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": "chain_mean"}, "move_mean"),
        ({"std_floor": 0.0}, "std_floor"),
        ({"trained_moves": 6}, "trained_moves=6 must lie between 1 and policy.steps=5"),
        ({"trained_moves": 0}, "trained_moves=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(make_policy, settings, message):
    with pytest.raises(UserError, match=message):
        build(make_policy, settings.pop("trained_moves", 2), **settings)
