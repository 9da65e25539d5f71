"""Updates and decisions of DQL and OFQL: against the public DQL's way of doing the same, and against each other."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Figures, gemm_floor, milliseconds, product_flops, ratios, several, with_either_kernels
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
    """Milliseconds of a gradient step and of decisions for 256 observations, and their ratios.

    Hopper's packaged demonstrations and the agents' own settings: 3 layers of 256, batches of 256, DQL with K = 5. The
    other sides are a textbook's, which does the same work with the same nets, and the public code's, with its own; they
    have torch's own choice of fp32 kernels, or ours (``same_gemm``). All sides take turns.

    Args:
        threads: torch threads.
        repeats: turns.
    """
    (dql, experience), (ofql, _) = sides_of("dql"), sides_of("ofql")
    obs = experience.sample(dql.config.batch, dql.config.mixing, dql.config.gamma, dql.generator).obs
    with torch_threads(threads):
        figures = {"updates": _updates(dql, ofql, experience, repeats)}
        with torch.inference_mode():
            return figures | _decisions(dql, ofql, obs, repeats)


def _updates(dql: DQL, ofql: OFQL, experience: Experience, repeats: int) -> Figures:
    check_equal_work(dql, TextbookDQL, experience)

    def learning(textbook: TextbookDQL) -> Callable[[], None]:
        config = textbook.config
        return several(
            lambda: textbook.learn(experience.sample(config.batch, config.mixing, config.gamma, textbook.generator)),
            _STEPS,
        )

    plain = {name: _updating(agent, experience) for name, agent in (("dql", dql), ("ofql", ofql))}
    compiled = {f"{name}_compiled": _compiled(name) for name in plain}
    others = with_either_kernels({name: learning(other) for name, other in _others(dql).items()})
    figures = milliseconds(plain | compiled | others, _STEPS, repeats)
    pairs = [(other, ours) for other in others for ours in ("dql", "dql_compiled")]
    figures |= ratios(figures, [*pairs, ("dql", "ofql"), ("dql_compiled", "ofql_compiled")])
    # Counting the products of compiled code would make torch compile it anew, and worse; they are as many.
    for name, side in plain.items():
        figures[f"{name}/gemm_floor"] = gemm_floor(side, dql.config.batch, "fp32")["ours/gemm_floor"]
    return figures | _work(plain)


def _others(dql: DQL) -> dict[str, TextbookDQL]:
    return {"textbook": TextbookDQL(dql), "public_code": PublicDQL(dql)}


def _updating(agent: Any, experience: Experience) -> Callable[[], object]:
    return lambda: agent.update(experience)


def _compiled(name: str) -> Callable[[], object]:
    """An update with compiled losses."""
    update = _updating(*sides_of(name, "agent.compile=true"))
    for _ in range(3):
        update()  # sizes that change are compiled for once they did
    return update


def _decisions(dql: DQL, ofql: OFQL, obs: Tensor, repeats: int) -> dict[str, Figures]:
    textbooks = _others(dql)  # before weights are packed, which cannot be copied
    check_equal_actions(dql, textbooks["textbook"], obs)

    def acting(policy: Any) -> Callable[[], None]:
        noise = policy.sample_noise(len(obs))
        return several(lambda: policy(obs, noise), _DECISIONS)

    with fixed_weights(dql.policy), fixed_weights(ofql.policy):  # as evaluation has them
        chosen, alone = (
            {"dql": acting(of_dql), "ofql": acting(of_ofql)}
            for of_dql, of_ofql in ((dql._deployed(), ofql._deployed()), (dql.policy.deploy(), ofql.policy.deploy()))
        )
        others = with_either_kernels({name: acting(other) for name, other in textbooks.items()})
        figures = milliseconds(chosen | others, _DECISIONS, repeats)
        without = milliseconds(alone, _DECISIONS, repeats)
        pairs = [(other, ours) for other in others for ours in chosen]
        return {
            "decisions": figures | ratios(figures, [*pairs, ("dql", "ofql")]) | _work(chosen),
            "decisions_without_candidates": without | ratios(without, [("dql", "ofql")]) | _work(alone),
        }


def _work(sides: Mapping[str, Callable[[], object]]) -> Figures:
    """How many times the arithmetic of OFQL's products DQL's have."""
    return {"dql/ofql_work": product_flops(sides["dql"]) / product_flops(sides["ofql"])}


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
