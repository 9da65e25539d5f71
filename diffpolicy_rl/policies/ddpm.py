"""DDPM and DDIM over a discrete noise schedule (Ho et al. 2020; Song et al. 2020)."""

import itertools
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffpolicy_rl.errors import UserError, require_positive
from diffpolicy_rl.nets.base import DenoisingNet
from diffpolicy_rl.policies.process import Time, combined, masked_mse


def cosine_betas(levels: int) -> list[float]:
    """Nichol & Dhariwal 2021, eq. 17, with s = 0.008 and betas clipped at 0.999."""
    f = [math.cos((i / levels + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(levels + 1)]
    return [min(1 - after / before, 0.999) for before, after in itertools.pairwise(f)]


def vp_betas(levels: int) -> list[float]:
    """Variance-preserving schedule, beta_min = 0.1, beta_max = 10 (Xiao et al. 2021, as Diffusion-QL uses it)."""
    slope = (10 - 0.1) / (2 * levels**2)
    return [1 - math.exp(-0.1 / levels - slope * (2 * i + 1)) for i in range(levels)]


def linear_betas(levels: int) -> list[float]:
    """Ho et al. 2020's 1e-4 to 2e-2, rescaled from 1000 levels so that few levels still reach noise (as EDP does)."""
    first, last = 0.1 / levels, min(20 / levels, 0.999)
    return [first + (last - first) * i / max(levels - 1, 1) for i in range(levels)]


SCHEDULES: dict[str, Callable[[int], list[float]]] = {"cosine": cosine_betas, "vp": vp_betas, "linear": linear_betas}


class DDPM:
    """A chain of noise levels j = levels (t = 0) down to 0 (t = 1), sampled by DDIM moves with any eta.

    x_j = sqrt(abar_j) a + sqrt(1 - abar_j) z, abar_0 = 1. With K < levels steps the grid is evenly spaced from the
    noisiest level down ("trailing" spacing in the words of diffusers).

    Args:
        levels: number of noise levels the net is trained on.
        schedule: a name in ``SCHEDULES``.
        prediction: whether the net predicts the noise or the clean action.
        clip: bound on the predicted clean action, in normalised units, or None.

    Attributes:
        betas: of the levels, from the first.
    """

    two_times: ClassVar[bool] = False

    def __init__(
        self,
        levels: int = 20,
        schedule: Literal["cosine", "vp", "linear"] = "cosine",
        prediction: Literal["eps", "x0"] = "eps",
        clip: float | None = 1.0,
    ) -> None:
        require_positive(levels=levels)
        self.levels, self.schedule, self.prediction, self.clip = levels, schedule, prediction, clip
        self.betas = SCHEDULES[schedule](levels)
        self._alpha_bar = [1.0]
        for beta in self.betas:
            self._alpha_bar.append(self._alpha_bar[-1] * (1 - beta))
        self._tables = {torch.device("cpu"): torch.tensor(self._alpha_bar, dtype=torch.float64)}

    def alpha_bar(self, t: Time) -> Time:
        """The signal level abar_j at public time t, float64."""
        if isinstance(t, Tensor):
            if t.device not in self._tables:  # a plain dict, because functools.cache is not compiled
                self._tables[t.device] = self._tables[torch.device("cpu")].to(t.device)
            return self._tables[t.device][((1 - t) * self.levels).round().long()]
        return self._alpha_bar[round((1 - t) * self.levels)]

    def grid(self, steps: int) -> list[float]:
        """Times of the K + 1 evenly spaced levels; K must divide the number of levels."""
        if self.levels % steps:
            raise UserError(
                f"policy.steps={steps} must divide the {self.levels} noise levels the policy was trained on"
            )
        return [k / steps for k in range(steps + 1)]

    def sample_times(self, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Times (B,) of uniformly drawn levels 1 to ``levels``."""
        t = 1 - torch.randint(1, self.levels + 1, (batch,), generator=generator) / self.levels
        return t, t

    def loss(
        self, net: DenoisingNet, action: Tensor, noise: Tensor, t: Tensor, s: Tensor, cond: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Simple loss per sample (Ho et al. 2020, eq. 14)."""
        alpha_bar = self.alpha_bar(t.double()).to(action.dtype).view(-1, 1, 1)
        x = alpha_bar.sqrt() * action + (1 - alpha_bar).sqrt() * noise
        return masked_mse(net(x, t, s, cond), noise if self.prediction == "eps" else action, mask)

    def step(self, x: Tensor, pred: Tensor, t: Time, s: Time, eta: float) -> tuple[Tensor, Time]:
        """DDIM move (Song et al. 2020, eq. 12) from the clipped clean action, noise recomputed from it.

        With eta = 1 and adjacent levels this is the DDPM posterior (Ho et al. 2020, eq. 7) of the clipped clean action.
        """
        a_t, a_s, std = self.alpha_bar(t), self.alpha_bar(s), self.std(t, s, eta)
        x0 = pred if self.prediction == "x0" else combined(x, a_t**-0.5, pred, -((1 / a_t - 1) ** 0.5))
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        # Of the noise that remains at s, the part not drawn afresh keeps the direction of the noise in x.
        kept = ((1 - a_s - std**2) / (1 - a_t)) ** 0.5
        return combined(x, kept, x0, a_s**0.5 - kept * a_t**0.5), std

    def std(self, t: Time, s: Time, eta: float) -> Time:
        """Song et al. 2020, eq. 16; 0 for the last move."""
        a_t, a_s = self.alpha_bar(t), self.alpha_bar(s)
        return eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)) ** 0.5  # pyright: ignore[reportReturnType]
