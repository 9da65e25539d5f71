"""What every agent needs and no learning rule is about: schedules, EMA, and a state that resumes bit for bit."""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.types import DeployedPolicy, Obs, State

Function = TypeVar("Function", bound=Callable[..., Any])


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from start (progress <= 0) to end (progress >= 1)."""
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class FusedAdamW(torch.optim.AdamW):
    """torch's fused AdamW without what its step does around the update, which takes longer than small updates do."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        (group,) = self.param_groups
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if any(parameter not in self.state for parameter in parameters):
            super().step(closure)
            return
        states = [self.state[parameter] for parameter in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def adamw(module: nn.Module, lr: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """Fused AdamW over a module's trainable parameters."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return FusedAdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def climbing(value: Tensor) -> Tensor:
    """Minus the mean () of values (...), over their mean size, so that its weight does not depend on the task's units.

    TD3+BC's normalisation (Fujimoto & Gu 2021, arXiv 2106.06860, eq. 5), by the values of the policy's own actions.
    """
    return -value.mean() / value.detach().abs().mean()


def compiled(function: Function, wanted: bool) -> Function:
    """A function of tensors, made faster by ``torch.compile`` with its first call if that is wanted.

    That call raises UserError if there is no compiler; agents that only act need none.
    """
    if not wanted:
        return function

    @functools.cache
    def fast() -> Function:
        from torch._inductor import cpp_builder, exc  # takes seconds

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            raise UserError(
                "agent.compile=true needs a C++ compiler; install g++ or clang++, or say where one is by CXX=PATH"
            ) from None
        return torch.compile(function)

    return cast(Function, lambda *arguments, **named: fast()(*arguments, **named))


@torch.no_grad()
def ema_update(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move every parameter of ``average`` towards ``module``'s by 1 - decay."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


class Stateful:
    """Something whose state is that of the attributes that learning changes, by name.

    Subclasses name modules, optimisers, generators and whatever else has a state in ``_parts``, numbers in
    ``_counters``.
    """

    _parts: tuple[str, ...] = ()
    _counters: tuple[str, ...] = ()

    def state_dict(self) -> State:
        """Everything named in ``_parts`` and ``_counters``."""
        counters = {name: getattr(self, name) for name in self._counters}
        return counters | {name: _state_of(getattr(self, name)) for name in self._parts}

    def load_state_dict(self, state: State) -> None:
        """Continue bit for bit where ``state_dict`` was taken."""
        for name in self._counters:
            setattr(self, name, state[name])
        for name in self._parts:
            _restore(getattr(self, name), state[name])


class BaseAgent(Stateful):
    """Deployment and chunk bookkeeping of an agent around one policy.

    Attributes:
        policy: the policy as it stands.
        chunk: A.
        updates: calls of ``update`` so far.
        gradient_steps: optimiser steps of the policy so far.
        iterations: calls of ``update`` that the schedules are laid out for.
        generator: the agent's own stream of randomness.
    """

    per_step: ClassVar[bool] = False
    _parts = ("policy", "generator")
    _counters = ("updates", "gradient_steps")
    policy: GenerativePolicy

    def __init__(self, policy: GenerativePolicy, iterations: int, seed: int) -> None:
        self.policy, self.chunk, self.iterations = policy, policy.execute, max(iterations, 1)
        self.updates = self.gradient_steps = 0
        self.generator = torch.Generator().manual_seed(seed)

    def _deployed_action(self, obs: Obs) -> Tensor:
        """What the deployed policy does (N, A, D), in env units, its noise from the agent's own stream."""
        deployed = self.deploy()
        noise = deployed.sample_noise(len(obs), self.generator)
        return deployed(obs, None if noise is None else noise.to(self.policy.device))[:, : self.chunk]

    def _noise(self, *shape: int) -> Tensor:
        """Standard normal numbers from the agent's own stream."""
        return torch.randn(shape, generator=self.generator).to(self.policy.device)

    def _uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1) from the agent's own stream."""
        return torch.rand(shape, generator=self.generator).to(self.policy.device)

    def reset(self, done: Tensor) -> None:
        """Chunk policies hold nothing per env."""

    def deploy(self) -> DeployedPolicy:
        """The policy without exploration noise."""
        return self.policy.deploy()


def _state_of(part: Any) -> Any:
    return part.get_state() if isinstance(part, torch.Generator) else dict(part.state_dict())


def _restore(part: Any, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif isinstance(part, torch.optim.Optimizer):
        # A checkpoint's keys are text; torch numbers its parameters.
        part.load_state_dict({**state, "state": {int(key): value for key, value in state["state"].items()}})
    else:
        part.load_state_dict(state)
