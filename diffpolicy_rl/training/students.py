"""Runs that distil another run: their settings, what their policy starts from, and who teaches it."""

import dataclasses
from typing import Any

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.policy import GenerativePolicy, SampledPolicy
from diffpolicy_rl.training.build import build_policy, pick_device
from diffpolicy_rl.training.config import BudgetConfig, PolicyConfig, TrainConfig, complete, modules_of, to_plain
from diffpolicy_rl.training.run import load, load_agent
from diffpolicy_rl.types import Agent, DeployedPolicy, Spec

_METHODS = {
    "regress": ("agents.regress.Regress", "policies.flow.RectifiedFlow"),
    "onedp": ("agents.onedp.OneDP", "policies.flow.RectifiedFlow"),
    "shortcut": ("agents.reflow.Reflow", "policies.shortcut.Shortcut"),
    "meanflow": ("agents.reflow.Reflow", "policies.meanflow.MeanFlow"),
    "consistency": ("agents.reflow.Reflow", "policies.consistency.Consistency"),
}
_SMOOTH = ("meanflow", "consistency")  # in time, because they learn from derivatives by it, or near to them
_ROLLOUT = 100  # env steps of each env per iteration


def student_config(
    run: str,
    which: str,
    method: str,
    teaching: TrainConfig,
    teacher: DeployedPolicy,
    env_steps: int,
    num_envs: int,
    value_weight: float = 0.0,
) -> TrainConfig:
    """The settings of a one-step student, which are its teacher's but for what makes it one.

    Args:
        run: the folder of the run that teaches.
        which: of its checkpoints.
        method: regress, onedp, shortcut, meanflow or consistency.
        teaching: the settings of that run.
        teacher: what it deploys; a student of what only starts from noise does so, too, others have none.
        env_steps: to learn for.
        num_envs: N.
        value_weight: of the teacher's critics.

    Raises:
        UserError: if the method needs noise that tells the teacher's samples apart, or knows no critics.
    """
    agent, process = _METHODS[method]
    component: dict[str, Any] = {"_target_": f"diffpolicy_rl.{agent}"}
    if value_weight:
        if method != "regress":
            raise UserError(f"method={method} knows no critics; leave value_weight out, or use method=regress")
        component["value_weight"] = value_weight
    if teaching.data.path is None:
        component["mixing"] = "none"
    decisions = max(_ROLLOUT // teaching.policy.execute, 1)
    iterations = max(env_steps // (decisions * teaching.policy.execute * num_envs), 1)
    return dataclasses.replace(
        teaching,
        agent=complete(component, "agent."),
        policy=_one_step(teaching.policy, method, process, isinstance(teacher, SampledPolicy)),
        env=dataclasses.replace(teaching.env, num_envs=num_envs),
        budget=BudgetConfig(env_steps=env_steps, decisions=decisions, eval_every=max(iterations // 5, 1)),
        base=None,
        teacher=run,
        teacher_which=which,
        diary=False,
        iterations=None,
        max_minutes=None,
    )


def _one_step(teaching: PolicyConfig, method: str, process: str, noise: bool) -> PolicyConfig:
    """The teacher's policy in one step, with its own net and process where these fit."""
    net, target = teaching.net, f"diffpolicy_rl.{process}"
    if not noise:
        if method not in ("regress", "onedp"):
            raise UserError(f"method={method} needs a teacher whose samples its noise determines; use method=regress")
        target = "diffpolicy_rl.policies.gaussian.Gaussian"
        hidden = {"hidden": net["hidden"]} if "hidden" in net else {}
        net = {"_target_": "diffpolicy_rl.nets.mlp.ConditionMLP", "activation": "relu", "squash": True} | hidden
    elif method in _SMOOTH and "time_scale" in net:
        net = net | {"time_scale": 3.0}
    same = teaching.process["_target_"] == target
    one = complete(teaching.process if same else {"_target_": target}, "policy.process.")
    return dataclasses.replace(teaching, steps=1, noise_scale=1.0, net=complete(net, "policy.net."), process=one)


def load_teacher(config: TrainConfig) -> DeployedPolicy:
    """What plans the chunks of the run's teacher; UserError if none is named."""
    if config.teacher is None:
        raise UserError("the agent learns from another run's policy; set teacher=<run>, or use diffpolicy_rl.distill")
    teacher = load(config.teacher, config.teacher_which, modules_of(to_plain(config)), pick_device(config.device))
    return teacher.planner()


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
