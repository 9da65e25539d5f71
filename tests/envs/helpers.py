import torch

from diffpolicy_rl import make_env

TOY = "tests.envs.toy_envs:ToyCounter-v0"
BACKENDS = ("gymnasium", "workers")


def toy(backend="gymnasium", **options):
    env = make_env(TOY, backend=backend, dtype=torch.float64, **options)
    env.reset(seed=5)
    return env


def full(value, n=2, chunk=4):
    return torch.full((n, chunk, 1), float(value))
