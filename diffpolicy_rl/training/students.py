"""Runs that distil another run: their settings, what their policy starts from, and who teaches it."""

import dataclasses
from typing import Any

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.policy import GenerativePolicy, SampledPolicy
from diffpolicy_rl.training.build import build_policy, pick_device
from diffpolicy_rl.training.config import BudgetConfig, TrainConfig, complete, modules_of, to_plain
from diffpolicy_rl.training.run import load, load_agent
from diffpolicy_rl.types import Agent, DeployedPolicy, Spec

_FLOW = {"_target_": "diffpolicy_rl.policies.flow.RectifiedFlow"}
_METHODS = {"regress": "diffpolicy_rl.agents.regress.Regress", "onedp": "diffpolicy_rl.agents.onedp.OneDP"}
_ROLLOUT = 100  # env steps of each env per iteration
_CERTAIN = {"_target_": "diffpolicy_rl.policies.gaussian.Gaussian"}


def student_config(
    run: str, which: str, method: str, teaching: TrainConfig, teacher: DeployedPolicy, env_steps: int, num_envs: int
) -> TrainConfig:
    """The settings of a one-step student, which are its teacher's but for what makes it one.

    Args:
        run: the folder of the run that teaches.
        which: of its checkpoints.
        method: regress or onedp.
        teaching: the settings of that run.
        teacher: what it deploys; a student of what only starts from noise does so, too, others have none.
        env_steps: to learn for.
        num_envs: N.
    """
    policy, noise = teaching.policy, isinstance(teacher, SampledPolicy)
    net, process = policy.net, _FLOW if policy.process["_target_"] != _FLOW["_target_"] else policy.process
    if not noise:
        hidden = {"hidden": net["hidden"]} if "hidden" in net else {}
        net = {"_target_": "diffpolicy_rl.nets.mlp.ConditionMLP", "activation": "relu", "squash": True} | hidden
        process = _CERTAIN
    one_step = dataclasses.replace(
        policy, steps=1, net=complete(net, "policy.net."), process=complete(process, "policy.process.")
    )
    agent: dict[str, Any] = {"_target_": _METHODS[method]}
    if teaching.data.path is None:
        agent["mixing"] = "none"
    decisions = max(_ROLLOUT // policy.execute, 1)
    iterations = max(env_steps // (decisions * policy.execute * num_envs), 1)
    budget = BudgetConfig(env_steps=env_steps, decisions=decisions, eval_every=max(iterations // 5, 1))
    return dataclasses.replace(
        teaching,
        agent=complete(agent, "agent."),
        policy=one_step,
        env=dataclasses.replace(teaching.env, num_envs=num_envs),
        budget=budget,
        base=None,
        teacher=run,
        teacher_which=which,
        diary=False,
        iterations=None,
        max_minutes=None,
    )


def load_teacher(config: TrainConfig) -> DeployedPolicy:
    """What the run's teacher deploys; UserError if none is named."""
    if config.teacher is None:
        raise UserError("the agent learns from another run's policy; set teacher=<run>, or use diffpolicy_rl.distill")
    return load(config.teacher, config.teacher_which, modules_of(to_plain(config)), pick_device(config.device))


def starting_student(config: TrainConfig, spec: Spec) -> GenerativePolicy:
    """A policy with the teacher's normalisers, and its net's weights where they mean the same.

    Raises:
        UserError: if the teacher was trained on another task.
    """
    teacher = _teaching_agent(config).policy
    policy = build_policy(config.policy, spec, config.seed)
    if (teacher.features, teacher.action_shape) != (policy.features, policy.action_shape):
        raise UserError(
            f"teacher={config.teacher} maps {teacher.features} features to actions {tuple(teacher.action_shape)}, "
            f"but {spec.env_id} and the settings want {policy.features} and {tuple(policy.action_shape)}"
        )
    policy.obs_normalizer.load_state_dict(teacher.obs_normalizer.state_dict())
    policy.action_normalizer.load_state_dict(teacher.action_normalizer.state_dict())
    alike = type(policy.process) is type(teacher.process) and type(policy.net) is type(teacher.net)
    if alike and _shapes(policy) == _shapes(teacher):
        policy.net.load_state_dict(teacher.net.state_dict())
    return policy


def _teaching_agent(config: TrainConfig) -> Agent:
    return load_agent(str(config.teacher), config.teacher_which, modules_of(to_plain(config)))


def _shapes(policy: GenerativePolicy) -> dict[str, Any]:
    return {name: value.shape for name, value in policy.net.state_dict().items()}
