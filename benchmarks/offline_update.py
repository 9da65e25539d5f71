"""Updates and decisions of DQL and OFQL: against the public DQL's way of doing the same, and against each other."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Figures, against_textbook, gemm_floor, product_flops, several, take_turns
from benchmarks.replay_update import check_equal_work
from benchmarks.textbook_dql import PublicDQL, TextbookDQL
from diffpolicy_rl.agents.dql import DQL
from diffpolicy_rl.agents.ofql import OFQL
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.replay import Experience
from diffpolicy_rl.nets.linear import fixed_weights
from diffpolicy_rl.training.build import build_env, build_policy, spec_of
from diffpolicy_rl.training.compose import compose
from diffpolicy_rl.training.phase import Phase
from diffpolicy_rl.training.threads import torch_threads

_STEPS = 20  # gradient steps per update
_DECISIONS = 5  # for each of as many observations as are learned from at once


def compare(threads: int, repeats: int) -> dict[str, Figures]:
    """Milliseconds of updates of 20 gradient steps and of 5 decisions for 256 observations, and their ratios.

    Hopper's packaged demonstrations and the agents' own settings: 3 layers of 256, batches of 256, DQL with K = 5. The
    other sides are a textbook's, which does the same work with the same nets, and the public code's, with its own.

    Args:
        threads: torch threads.
        repeats: turns.
    """
    (dql, experience), (ofql, _) = sides_of("dql"), sides_of("ofql")
    obs = experience.sample(dql.config.batch, dql.config.mixing, dql.config.gamma, dql.generator).obs
    with torch_threads(threads):
        figures = _updates(dql, ofql, experience, repeats)
        with torch.inference_mode():
            return figures | _decisions(dql, ofql, obs, repeats)


def _updates(dql: DQL, ofql: OFQL, experience: Experience, repeats: int) -> dict[str, Figures]:
    check_equal_work(dql, TextbookDQL, experience)

    def theirs(textbook: TextbookDQL) -> Callable[[], None]:
        config = textbook.config
        return several(
            lambda: textbook.learn(experience.sample(config.batch, config.mixing, config.gamma, textbook.generator)),
            _STEPS,
        )

    def ours() -> object:
        return dql.update(experience)

    def one_step() -> object:
        return ofql.update(experience)

    figures: dict[str, Figures] = {}
    plain, fast = {"dql": ours, "ofql": one_step}, {name: _compiled(name) for name in ("dql", "ofql")}
    for prefix, sides in (("compiled_", fast), ("", plain)):
        figures[f"{prefix}dql"] = against_textbook(sides["dql"], theirs(TextbookDQL(dql)), repeats)
        figures[f"{prefix}dql_against_public_code"] = against_textbook(sides["dql"], theirs(PublicDQL(dql)), repeats)
        pair = _versus(sides, repeats)
        figures[f"{prefix}ofql_update"] = pair | {"ofql_updates_per_s": 1e3 * _STEPS / pair["ofql_ms"]}
    # Counting the products of compiled code would make torch compile it anew, and worse; they are as many.
    figures["dql"] |= gemm_floor(ours, dql.config.batch, "fp32")
    figures["ofql_update"] |= _work(plain) | gemm_floor(one_step, ofql.config.batch, "fp32")
    return figures


def _compiled(name: str) -> Callable[[], object]:
    """An update with compiled losses."""
    agent, experience = sides_of(name, "agent.compile=true")
    for _ in range(3):
        agent.update(experience)  # sizes that change are compiled for once they did
    return lambda: agent.update(experience)


def _decisions(dql: DQL, ofql: OFQL, obs: Tensor, repeats: int) -> dict[str, Figures]:
    others = {"textbook_dql": TextbookDQL(dql), "public_dql": PublicDQL(dql)}
    check_equal_actions(dql, others["textbook_dql"], obs)
    with fixed_weights(dql.policy), fixed_weights(ofql.policy):  # as evaluation has them
        sides = {"dql": _acting(dql._deployed(), obs), "ofql": _acting(ofql._deployed(), obs)}
        alone = {"dql": _acting(dql.policy.deploy(), obs), "ofql": _acting(ofql.policy.deploy(), obs)}
        figures = {
            "acting": _versus(sides, repeats) | _work(sides),
            "acting_without_candidates": _versus(alone, repeats) | _work(alone),
        }
        for other, policy in others.items():
            for name, side in sides.items():
                figures[f"acting_{name}_against_{other}"] = against_textbook(side, _acting(policy, obs), repeats)
    return figures


def _versus(sides: Mapping[str, Callable[[], object]], repeats: int) -> Figures:
    """Milliseconds of both, and how many times longer DQL takes."""
    seconds = take_turns(sides, repeats)
    figures = {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
    return figures | {"dql/ofql": seconds["dql"] / seconds["ofql"]}


def _work(sides: Mapping[str, Callable[[], object]]) -> Figures:
    """How many times the arithmetic of OFQL's products DQL's have."""
    return {"dql/ofql_work": product_flops(sides["dql"]) / product_flops(sides["ofql"])}


def _acting(policy: Any, obs: Tensor) -> Callable[[], None]:
    noise = policy.sample_noise(len(obs))
    return several(lambda: policy(obs, noise), _DECISIONS)


def check_equal_actions(agent: DQL, textbook: TextbookDQL, obs: Tensor) -> None:
    """Raise UserError unless equal noise makes both sides choose equal actions, within 1e-4.

    Args:
        agent: our side.
        textbook: the other one.
        obs: raw observations (N, O).
    """
    noise = textbook.sample_noise(len(obs))
    ours = agent.policy.action_normalizer(agent._deployed()(obs, noise))
    error = (ours - textbook(obs, noise)).abs().max().item()
    if not error < 1e-4:
        raise UserError(f"the two sides do not do the same work: their actions differ by {error:.1e}")


def sides_of(name: str, *words: str) -> tuple[Any, Experience]:
    """An agent about to learn offline, with settings of its own, and what it learns from."""
    (run,) = compose([f"agent={name}", "env=hopper", f"agent.steps={_STEPS}", *words], sweep=False)
    env = build_env(run, run.env.num_envs)
    spec = spec_of(env)
    phase = Phase(run, "offline", build_policy(run.policy, spec, run.seed), env, spec)
    agent: Any = phase.agent
    assert isinstance(agent, DQL | OFQL)
    return agent, phase.experience
