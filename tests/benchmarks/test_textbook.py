"""The two sides of the sampling and update ratios do the same work."""

import pytest
import torch

from benchmarks.equal_work import check_equal_gradients, check_equal_samples, gradients
from benchmarks.textbook import TextbookDPPO, TextbookReinFlow, as_minibatch
from diffpolicy_rl.agents.dppo import DPPO, DPPOConfig
from diffpolicy_rl.agents.reinflow import ReinFlow, ReinFlowConfig
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow

ROWS = 64


@pytest.fixture
def sides(make_policy):
    policy = make_policy(RectifiedFlow(), 4, execute=4)
    policy.obs_normalizer.fit(torch.randn(50, 3), "z_score")
    config = ReinFlowConfig(critic_hidden=(16, 16, 16), std_hidden=(16,), minibatch=32, epochs=2, lr=1e-3)
    agent = ReinFlow(policy, config, iterations=10, seed=0)
    return agent, TextbookReinFlow(agent)


def rollout(agent, obs):
    chain, log_prob = agent.policy.sample_chain(obs, generator=torch.Generator().manual_seed(1))
    batch = {"obs": obs, "chain": chain.states, "log_prob": log_prob.flatten(1).mean(1, keepdim=True)}
    return batch | {"advantage": torch.randn(ROWS), "returns": torch.randn(ROWS)}, log_prob


def test_chains_and_densities_agree(sides):
    agent, textbook = sides
    obs = torch.randn(ROWS, 3)
    batch, log_prob = rollout(agent, obs)
    unit = torch.randn(ROWS, 5, 4, 2, generator=torch.Generator().manual_seed(1))
    states, theirs = textbook.sample_chain(obs, unit)
    torch.testing.assert_close(states, batch["chain"], atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs, log_prob, atol=1e-5, rtol=0)


def test_losses_and_gradients_agree_away_from_the_first_step(sides):
    agent, textbook = sides
    batch, _ = rollout(agent, torch.randn(ROWS, 3))
    batch["log_prob"] = batch["log_prob"] + 0.02 * torch.randn(ROWS, 1)  # some ratios are clipped
    ours, _ = agent._policy_loss(as_minibatch(batch))
    theirs = textbook.policy_loss(batch)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    ours.backward()
    theirs.backward()
    pairs = gradients(agent, textbook)
    for a, b in pairs.values():
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    held = [*textbook.net.parameters(), *textbook.noise_net.parameters()]
    assert sum(b.numel() for _, b in pairs.values()) == sum(parameter.numel() for parameter in held)
    assert pairs["the first layer"][0].abs().max() > 1e-4


def test_a_side_that_does_other_work_is_refused(sides):
    agent, textbook = sides
    obs = torch.randn(ROWS, 3)
    batch, _ = rollout(agent, obs)
    check_equal_samples(agent, textbook, obs)
    check_equal_gradients(agent, textbook, batch)
    assert all(parameter.grad is None for parameter in agent.policy.parameters())
    with torch.no_grad():
        textbook.noise_net.layers[-1].bias += 0.01
    with pytest.raises(UserError, match=r"do not do the same work: their chains differ by .*, above 1e-04"):
        check_equal_samples(agent, textbook, obs)
    with pytest.raises(UserError, match=r"their gradients of .* differ by .*, above 1e-08"):
        check_equal_gradients(agent, textbook, batch)


def test_noise_free_samples_are_compared_too(sides):
    agent, textbook = sides
    obs = torch.randn(ROWS, 3)
    textbook.sample = lambda obs, noise: noise
    with pytest.raises(UserError, match="noise-free samples differ"):
        check_equal_samples(agent, textbook, obs)


def test_an_update_makes_the_same_number_of_steps(sides):
    agent, textbook = sides
    batch, _ = rollout(agent, torch.randn(ROWS, 3))
    before = [parameter.clone() for parameter in textbook.net.parameters()]
    assert len(textbook.update(batch)) == 2 * 2 * ROWS // 32
    assert all(not torch.equal(a, b) for a, b in zip(before, textbook.net.parameters(), strict=True))


@pytest.mark.parametrize("moves", [1, 3, 5])
def test_the_textbook_of_dppo_does_the_same_work(make_policy, moves):
    policy = make_policy(DDPM(levels=5), 5, execute=4)
    policy.obs_normalizer.fit(torch.randn(50, 3), "z_score")
    config = DPPOConfig(critic_hidden=(16, 16, 16), minibatch=32, epochs=1, trained_moves=moves, clip_first=0.002)
    agent, obs = DPPO(policy, config, iterations=10, seed=0), torch.randn(ROWS, 3)
    with torch.no_grad():
        for parameter in policy.net.parameters():  # the trained net is no longer the frozen one
            parameter += 0.02 * torch.randn_like(parameter)
    textbook = TextbookDPPO(agent)
    _, extras = agent.act(obs, explore=True)
    extras["log_prob"] = extras["log_prob"] + 0.005 * torch.randn_like(extras["log_prob"])  # some are clipped
    batch = {"obs": obs, **extras, "advantage": torch.randn(ROWS), "returns": torch.randn(ROWS)}
    check_equal_samples(agent, textbook, obs)
    check_equal_gradients(agent, textbook, batch)
    assert textbook.samples(batch) == ROWS * moves
    assert len(textbook.update(batch)) == 2 * ROWS * moves // 32
