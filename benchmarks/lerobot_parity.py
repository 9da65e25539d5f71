"""Does LeRobot compute what we do from a checkpoint we write? ``python -m benchmarks.lerobot_parity`` where it is.

LeRobot asks for an older torch than ours, but runs with it: ``pip install --no-deps lerobot`` in an environment
of its own, and what it then misses. Policies with random weights, of every kind that has a place in LeRobot, are
written, loaded as its users load them, and asked with the same noise, for whole chunks and action by action.
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_rl.bundles.lerobot import checkpoint_files
from diffpolicy_rl.nets.chi_unet1d import ChiUNet1d
from diffpolicy_rl.nets.mlp import shrink
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy, SampledPolicy

OBS, D, H, A, STATE, LEVELS, ROWS = 11, 3, 8, 4, 5, 10, 64
TOLERANCE = 3e-5
"""Of the largest action, in normalised units; sampling from predicted noise enlarges what was rounded."""


def toy(prediction: Any, schedule: Any, eta: float) -> SampledPolicy:
    """A policy with random weights, with an output layer so large that clipping matters where there is any."""
    net = ChiUNet1d(H, D, OBS, False, widths=(32, 64), time_dim=16, time_scale=LEVELS)
    process = DDPM(LEVELS, schedule, prediction, clip=1.0 if eta else None)
    normalizers = Normalizer((OBS,)), Normalizer((D,))
    for normalizer in normalizers:
        normalizer.set(torch.randn_like(normalizer.shift), torch.rand_like(normalizer.scale) + 0.1)
    policy = GenerativePolicy(net, process, *normalizers, H, A, LEVELS)
    shrink(net.out[-1], 3.0)
    return policy.deploy(eta)


def theirs(folder: Path) -> tuple[Any, Any, Any]:
    """LeRobot's policy, and what it has before and behind it."""
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy  # type: ignore[import-not-found]
    from lerobot.policies.factory import make_pre_post_processors  # type: ignore[import-not-found]

    policy = DiffusionPolicy.from_pretrained(folder, strict=True)
    return policy, *make_pre_post_processors(policy.config, pretrained_path=str(folder))


def observed(obs: Tensor) -> dict[str, Tensor]:
    """Observations under LeRobot's names."""
    return {"observation.state": obs[..., :STATE], "observation.environment_state": obs[..., STATE:]}


@torch.no_grad()
def check(prediction: str, schedule: str, eta: float) -> None:
    """One kind of policy, chunks and actions."""
    ours = toy(prediction, schedule, eta)
    with tempfile.TemporaryDirectory() as place:
        for name, content in checkpoint_files(ours, STATE).items():
            (Path(place) / name).write_bytes(content)
        policy, before, behind = theirs(Path(place))
    obs, noise = torch.randn(ROWS, OBS), torch.randn(ROWS, LEVELS + 1, H, D)
    torch.manual_seed(0)  # LeRobot draws the noise of DDPM's moves itself
    noise[:, 1:-1] = torch.stack([torch.randn(ROWS, H, D) for _ in range(LEVELS - 1)], dim=1)
    expected = ours(obs, noise if eta else noise[:, 0])[:, :A]
    torch.manual_seed(0)
    batch = {name: value.unsqueeze(1) for name, value in before(observed(obs)).items() if name.startswith("obs")}
    found = behind(policy.diffusion.generate_actions(batch, noise=noise[:, 0]))
    report(f"{prediction}, {schedule}, eta {eta:g}, chunks", ours, found, expected)
    if eta == 0:
        policy.reset()
        one, start = observed(obs[0]), noise[:1, 0]
        actions = [behind(policy.select_action(before(one), noise=start)) for _ in range(A)]
        report(f"{prediction}, {schedule}, eta {eta:g}, single actions", ours, torch.cat(actions), expected[0])


def report(what: str, ours: SampledPolicy, found: Tensor, expected: Tensor) -> None:
    """Say how far apart actions are, and fail if it is too far."""
    found, expected = (ours.policy.action_normalizer(actions) for actions in (found, expected))
    error = float((found - expected).abs().max() / expected.abs().max())
    print(f"{what}: within {error:.1e}")
    assert error <= TOLERANCE


def main() -> None:
    """Check all of it."""
    torch.manual_seed(1)
    for prediction, schedule, eta in itertools.product(("eps", "x0"), ("cosine", "linear"), (0.0, 1.0)):
        check(prediction, schedule, eta)


if __name__ == "__main__":
    main()
