"""From settings to objects: the only place that knows how agents and policies are put together."""

from pathlib import Path
from typing import Any

import torch

from diffpolicy_rl.data.catalog import resolve as resolve_data
from diffpolicy_rl.data.dataset import ChunkDataset
from diffpolicy_rl.data.formats import open_source
from diffpolicy_rl.data.transitions import ReadOptions, Transitions, load
from diffpolicy_rl.envs.make import make_env
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.gaussian import Gaussian
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.streams import stream
from diffpolicy_rl.training.config import Component, DataConfig, PolicyConfig, TrainConfig, arguments, target
from diffpolicy_rl.types import Agent, Spec, VecEnv

_WEIGHTS, _AGENT = 2, 3  # stream keys


def pick_device(name: str) -> torch.device:
    """The device ``auto``, ``cpu`` or ``cuda`` stands for; UserError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise UserError(f"device={name} is not available on this machine; use device=auto or device=cpu") from None


def build_env(config: TrainConfig, num_envs: int, render: bool = False) -> VecEnv:
    """N copies of the run's task, stepped as its agent decides: by chunk or by action; workers cannot render."""
    env, per_step = config.env, getattr(target(config.agent["_target_"]), "per_step", False)
    return make_env(
        env.id,
        num_envs=num_envs,
        chunk=1 if per_step else config.policy.execute,
        device=str(pick_device(config.device)),
        backend="gymnasium" if render and env.backend == "workers" else env.backend,
        render=render,
        history=env.history,
        threads=config.threads,
        seed=config.seed,
        **env.options,
    )


def spec_of(env: VecEnv) -> Spec:
    """What a policy must know of an env."""
    obs, action = env.single_observation_space, env.single_action_space
    assert obs.shape is not None
    return Spec(env.spec_id, tuple(obs.shape), len(action.low))


def build_policy(config: PolicyConfig, spec: Spec, seed: int) -> GenerativePolicy:
    """A policy with random weights and normalisers that are not fitted yet."""
    *stack, obs_dim = spec.obs_shape
    history = stack[0] if stack else 1
    process = target(config.process["_target_"])(**arguments(config.process))
    if config.noise_scale != 1 and isinstance(process, Gaussian):
        raise UserError(f"policy.noise_scale={config.noise_scale}, but a Gaussian policy does not start from noise")
    shapes = (config.horizon, spec.action_dim, history * obs_dim, process.two_times)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(_WEIGHTS, seed).initial_seed())
        net = target(config.net["_target_"])(*shapes, **arguments(config.net))
    normalizers = Normalizer((obs_dim,)), Normalizer((spec.action_dim,))
    how = config.horizon, config.execute, config.steps, history, config.noise_scale
    return GenerativePolicy(net, process, *normalizers, *how)


def build_agent(component: Component, policy: GenerativePolicy, iterations: int, seed: int) -> Agent:
    """An agent around a policy, its own networks drawn from the seed."""
    cls: Any = target(component["_target_"])
    with torch.random.fork_rng(devices=[]):
        generator = stream(_AGENT, seed)
        torch.manual_seed(generator.initial_seed())
        return cls(policy, cls.Config(**arguments(component)), iterations=iterations, seed=generator.initial_seed())


def phase_component(config: TrainConfig, phase: str) -> Component:
    """The learning rule of a phase: the agent's own, unless behaviour cloning only prepares it."""
    phases = phases_of(config)
    return config.bc if phase == "bc" and phases[-1] != "bc" else config.agent


def phases_of(config: TrainConfig) -> tuple[str, ...]:
    """The phases of a run, in order: no cloning where it starts from another's policy, only those with a budget."""
    phases: tuple[str, ...] = getattr(target(config.agent["_target_"]), "phases", ())
    replaced = {"bc": config.base, "online": not config.budget.env_steps}
    left = tuple(phase for phase in phases if not replaced.get(phase))
    if not left:
        reasons = {"bc": "cloning, which base= replaces", "online": "acting, which budget.env_steps=0 rules out"}
        but = " and ".join(reasons[phase] for phase in phases)
        raise UserError(f"{config.agent['_target_']} has no phase to run" + (f" but {but}" if but else ""))
    return left


def read_data(config: DataConfig) -> Transitions:
    """What a run's data settings name, telling what had to be assumed.

    Raises:
        UserError: if they name nothing, or the file is not sound.
    """
    options = ReadOptions(config.keys, config.mask, config.max_episode_steps)
    source = open_source(resolve_data(str(config.path)), options)
    for note in source.notes:
        print(f"{source.path.name}: {note}", flush=True)
    transitions = load(source)
    return transitions if config.max_cost is None else transitions.costing_at_most(config.max_cost)


def build_dataset(config: TrainConfig, spec: Spec, policy: GenerativePolicy) -> ChunkDataset:
    """The run's demonstrations, actions normalised; they fit the policy's normalisers, unless others did before."""
    if config.data.path is None:
        other = "set agent.mixing=none if the agent can do without" if config.base else "start from base=<run>"
        raise UserError(
            f"env={spec.env_id} has no packaged demonstrations; "
            f"give data=<file>, make one with diffpolicy_rl.collect, or {other}"
        )
    file = Path(config.data.path)
    if config.data.recipe and not file.exists():
        raise UserError(f"there is no {file} yet; make it: python -m diffpolicy_rl.collect recipe={file.stem}")
    transitions = read_data(config.data)
    episodes, history = config.data.episodes, config.env.history
    dataset = ChunkDataset(transitions, policy.horizon, history=history, episodes=episodes, device=policy.device)
    dataset.check_fits(spec)
    if not policy.action_normalizer.fitted:
        policy.obs_normalizer.fit(dataset.obs, config.policy.obs_norm)
        policy.action_normalizer.fit(dataset.actions, config.policy.action_norm)
    dataset.actions = policy.action_normalizer(dataset.actions)
    return dataset
