"""The one policy interface that every agent, evaluation and export is written against."""

import copy
import itertools
import math
from typing import Self

import torch
from torch import Tensor, nn

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.base import Accompanied, Context, DenoisingNet
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.process import Drawn, Process
from diffpolicy_rl.policies.std import StdRule
from diffpolicy_rl.types import Chain, DeployedPolicy, Obs

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class GenerativePolicy(nn.Module):
    """Encoder, denoising net, process and normalisers: a distribution over action chunks.

    Observations enter raw; actions and noise are in normalised units everywhere in this class.

    Args:
        net: denoising net.
        process: noise process.
        obs_normalizer: over (O,).
        action_normalizer: over (D,).
        horizon: H.
        execute: A <= H, how many actions of a chunk are executed.
        steps: K.
        history: To, observations the policy sees.
        noise_scale: what drawn noise is multiplied by, as by CleanDiffuser's temperature (Dong et al. 2024, arXiv
            2406.09509); below 1, samples are likelier ones. Noise that an agent gives to learn from stays as it is.

    Attributes:
        features: F, width of the condition features.
        frozen_until: moves that start before this time are made by a frozen copy of the net.
    """

    frozen_net: DenoisingNet | None
    std_rule: StdRule | None

    def __init__(
        self,
        net: DenoisingNet,
        process: Process,
        obs_normalizer: Normalizer,
        action_normalizer: Normalizer,
        horizon: int,
        execute: int,
        steps: int,
        history: int = 1,
        noise_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not 1 <= execute <= horizon:
            raise UserError(f"policy.execute={execute} must lie between 1 and policy.horizon={horizon}")
        self.net, self.process = net, process
        self.obs_normalizer, self.action_normalizer = obs_normalizer, action_normalizer
        self.horizon, self.execute, self.steps, self.noise_scale = horizon, execute, steps, noise_scale
        self.action_shape = (horizon, len(action_normalizer.shift))
        self.features = history * obs_normalizer.shift.numel()
        self.frozen_net, self.frozen_until, self.std_rule = None, 0.0, None
        process.grid(steps)  # refuses a number of steps that the process cannot take

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.obs_normalizer.shift.device

    def encode(self, obs: Obs) -> Tensor:
        """Condition features (B, F) of raw observations (B, O) or (B, To, O)."""
        assert isinstance(obs, Tensor)
        return self.obs_normalizer(obs).flatten(1)

    def sample(
        self,
        obs: Obs,
        noise: Tensor | None = None,
        *,
        steps: int | None = None,
        eta: float = 0.0,
        features: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw chunks (B, H, D); differentiable, and deterministic in the noise.

        Args:
            obs: raw observations.
            noise: (B, H, D) if eta = 0, or (M, B, H, D) for as many of M chunks each; else (B, K+1, H, D): the initial
                noise and every move's; drawn if not given.
            steps: K, by default the policy's own.
            eta: 0 for DDIM or the flow's ODE, 1 for DDPM.
            features: what ``encode(obs)`` gave, to encode once for several samples.
            generator: CPU generator for noise that is not given.
        """
        cond = self.encode(obs) if features is None else features
        grid = self.process.grid(steps or self.steps)
        if noise is None:
            shape = self.action_shape if eta == 0 else (len(grid), *self.action_shape)
            noise = self.scaled(torch.randn((len(cond), *shape), generator=generator).to(cond.device))
        if eta == 0:
            return self._moved(noise, grid, cond)
        return self._moved(noise[:, 0], grid, cond, eta, noise[:, 1:])

    def _moved(
        self, x: Tensor, grid: list[float], cond: Tensor, eta: float = 0.0, noise: Tensor | None = None
    ) -> Tensor:
        """Where chunks (B, H, D) are led from the first time of a grid to its last, by moves with noise if given."""
        for k, (net, context) in enumerate(self._moves(grid, cond)):
            x, std = self.process.step(x, net.denoise(x, context), grid[k], grid[k + 1], eta)
            if noise is not None and std > 0:
                x = x + std * noise[:, k]
        return x

    def loss(
        self,
        obs: Obs,
        action: Tensor,
        *,
        noise: Tensor | None = None,
        t: Tensor | None = None,
        s: Tensor | None = None,
        mask: Tensor | None = None,
        net: DenoisingNet | None = None,
        features: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Regression loss per sample (B,) of the process, on actions (B, H, D).

        Args:
            obs: raw observations.
            action: normalised chunks.
            noise: (B, H, D); drawn if not given.
            t: (B,); drawn with s if not given.
            s: (B,); t if not given, where two-time processes regress the velocity.
            mask: (B, H) bool, False where a chunk runs past its episode.
            net: used in place of the policy's own, as a ``Watched`` one.
            features: what ``encode(obs)`` gave.
            generator: CPU generator for what is drawn.
        """
        if noise is None:
            noise = torch.randn(action.shape, generator=generator).to(action.device)
        if t is None:
            t, s = (time.to(action.device) for time in self.process.sample_times(len(action), generator))
        cond = self.encode(obs) if features is None else features
        return self.process.loss(self.net if net is None else net, action, noise, t, t if s is None else s, cond, mask)

    def loss_and_sample(
        self, obs: Obs, action: Tensor, noise: Tensor, *, drawn: Drawn, features: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``loss`` (B,) on actions, and ``sample`` (B, H, D) from noise, whose first move shares the loss's forward.

        Args:
            obs: raw observations.
            action: normalised chunks (B, H, D) to regress on.
            noise: (B, H, D) to sample from.
            drawn: what ``loss`` would draw.
            features: what ``encode(obs)`` gave.
            mask: see ``loss``.
        """
        assert self.frozen_net is None
        grid = self.process.grid(self.steps)
        net = Accompanied(self.net, noise, grid[0], grid[1], features)
        loss = self.loss(obs, action, mask=mask, net=net, features=features, **drawn)
        x, _ = self.process.step(noise, net.pred, grid[0], grid[1], 0.0)
        return loss, self._moved(x, grid[1:], features) if self.steps > 1 else x

    @torch.no_grad()
    def sample_chain(
        self,
        obs: Obs,
        noise: Tensor | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Chain, Tensor]:
        """Draw the moves ``start`` to ``stop`` of a chain with the policy's StdRule.

        Returns the chain and the log-densities (B, K', H, D) of its moves, which cost nothing here.

        Args:
            obs: raw observations.
            noise: the chain's first state (B, H, D); drawn if not given.
            start: index of the first move.
            stop: index after the last move, K by default.
            generator: CPU generator for what is drawn.
        """
        assert self.std_rule is not None
        cond, rule = self.encode(obs), self.std_rule
        grid = self.process.grid(self.steps)[start : (self.steps if stop is None else stop) + 1]
        stds = self._stds(grid, cond)
        shape = (len(cond), len(grid), *self.action_shape)
        # Moves come first in memory, so that every state is in one piece.
        unit = torch.randn(shape, generator=generator).to(cond.device).transpose(0, 1).contiguous()
        unit[1:].clamp_(-rule.noise_clip, rule.noise_clip)
        states = torch.empty_like(unit)
        states[0] = self.scaled(unit[0]) if noise is None else noise
        befores, afters, units = states[:-1].unbind(), states[1:].unbind(), unit[1:].unbind()
        scales = stds.unbind(1)
        for k, (net, context) in enumerate(self._moves(grid, cond)):
            pred = net.denoise(befores[k], context)
            mean, _ = self.process.step(befores[k], pred, grid[k], grid[k + 1], rule.eta)
            torch.addcmul(mean, scales[k], units[k], out=afters[k])
        unit = unit[1:].transpose(0, 1)
        log_prob = torch.addcmul(-stds.log() - _HALF_LOG_2PI, unit, unit, value=-0.5)
        return Chain(states.transpose(0, 1), start), log_prob

    def chain_log_prob(self, obs: Obs, chain: Chain) -> tuple[Tensor, Tensor]:
        """Log-density (B, K', H, D) of a chain's moves and, broadcastable to that, their entropies.

        All moves are taken to be the trained net's.
        """
        cond, states = self.encode(obs), chain.states
        grid = self.process.grid(self.steps)[chain.start : chain.start + states.shape[1]]
        stds = self._stds(grid, cond)
        t, s = self._times(grid, states.device)
        before, after = states[:, :-1], states[:, 1:]
        pred = self.net.denoise(before, self.net.context(t.to(cond.dtype), s.to(cond.dtype), cond.unsqueeze(1)))
        assert self.std_rule is not None
        mean, _ = self.process.step(before, pred, t.view(-1, 1, 1), s.view(-1, 1, 1), self.std_rule.eta)
        log_std = stds.log() + _HALF_LOG_2PI
        return -0.5 * ((after - mean) / stds).square() - log_std, log_std + 0.5

    def scaled(self, noise: Tensor) -> Tensor:
        """What samples are drawn from, of standard normal noise."""
        return noise if self.noise_scale == 1 else self.noise_scale * noise

    def deploy(self, eta: float = 0.0) -> "SampledPolicy":
        """The policy as it is shipped, sharing these weights."""
        return SampledPolicy(self, eta)

    def freeze_early(self, trained_moves: int) -> None:
        """Let a frozen copy of the net, as it now is, make all but the last moves (Ren et al. 2024, section 4.3).

        Args:
            trained_moves: K' <= K, how many moves stay trainable.

        Raises:
            UserError: if there are not so many moves.
        """
        if not 1 <= trained_moves <= self.steps:
            raise UserError(f"trained_moves={trained_moves} must lie between 1 and policy.steps={self.steps}")
        self.frozen_until = self.process.grid(self.steps)[-1 - trained_moves]
        self.frozen_net = copy.deepcopy(self.net).requires_grad_(False) if self.frozen_until > 0 else None

    def frozen_copy(self) -> Self:
        """A copy that no gradient reaches."""
        return copy.deepcopy(self).requires_grad_(False)

    def _times(self, grid: list[float], device: torch.device) -> tuple[Tensor, Tensor]:
        times = torch.tensor(grid, dtype=torch.float64, device=device)
        return times[:-1], times[1:]

    def _moves(self, grid: list[float], cond: Tensor) -> list[tuple[DenoisingNet, Context]]:
        """For every move, the net that makes it and what that net needs beside the noisy chunk."""
        t, s = (times.to(cond.dtype) for times in self._times(grid, cond.device))
        frozen = sum(time < self.frozen_until for time in grid[:-1])
        moves: list[tuple[DenoisingNet, Context]] = []
        for net, part in ((self.frozen_net, slice(None, frozen)), (self.net, slice(frozen, None))):
            if net is not None and len(t[part]):
                context = net.context(t[part].unsqueeze(1), s[part].unsqueeze(1), cond.unsqueeze(0))
                # What all moves share stays one tensor, so that its gradients are summed as they come.
                of_moves = zip(*(x.unbind(0) * (len(t[part]) // len(x)) for x in context), strict=True)
                moves += [(net, of_move) for of_move in of_moves]
        return moves

    def _stds(self, grid: list[float], cond: Tensor) -> Tensor:
        assert self.std_rule is not None
        stds = [self.process.std(t, s, self.std_rule.eta) for t, s in itertools.pairwise(grid)]
        process_std, t = (torch.tensor(x, dtype=torch.float64, device=cond.device) for x in (stds, grid[:-1]))
        return self.std_rule(process_std, t, cond)


class SampledPolicy(DeployedPolicy):
    """A GenerativePolicy's sampler in env units.

    Args:
        policy: the policy; its weights are shared.
        eta: stochasticity of the sampler.
    """

    def __init__(self, policy: GenerativePolicy, eta: float) -> None:
        super().__init__()
        self.policy, self.eta, self.execute = policy, eta, policy.execute
        self.noise_shape = policy.action_shape if eta == 0 else (policy.steps + 1, *policy.action_shape)

    def forward(self, obs: Obs, noise: Tensor | None) -> Tensor:
        """Map raw observations (N, O) and noise (N, *noise_shape) to actions (N, H, D) in env units."""
        start = None if noise is None else self.policy.scaled(noise)
        return self.policy.action_normalizer.inverse(self.policy.sample(obs, start, eta=self.eta))
