import pytest
import torch

from diffpolicy_rl.nets.embeddings import STEPS
from diffpolicy_rl.nets.mlp import DenoisingMLP
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.policies.process import Process


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def make_policy():
    """Small policies: O = 3, D = 2, H = 4, A = 2."""

    def build(
        process: Process, steps: int, horizon: int = 4, execute: int = 2, width: int = 32, time_scale: float = STEPS
    ) -> GenerativePolicy:
        net = DenoisingMLP(horizon, 2, 3, process.two_times, hidden=(width,) * 3, time_scale=time_scale)
        return GenerativePolicy(net, process, Normalizer((3,)), Normalizer((2,)), horizon, execute, steps)

    return build
