import torch

from diffpolicy_rl.experience.buffers import RolloutBuffer


def decision(value, truncated):
    n = len(truncated)
    flags = torch.tensor(truncated)
    return {
        "obs": torch.full((n, 3), float(value)),
        "extras": {"value": torch.full((n,), value * 10.0)},
        "rewards": torch.full((n, 2), value + 0.5),
        "executed": torch.full((n,), 2),
        "terminated": torch.zeros(n, dtype=torch.bool),
        "truncated": flags,
        "final_obs": torch.arange(n).unsqueeze(1).expand(n, 3) + 100.0 * value,
    }


def test_fields_extras_and_final_observations_line_up():
    buffer = RolloutBuffer(2)
    for first in (1, 5):  # the second rollout overwrites the first
        buffer.add(**decision(first, [False, True]))
        buffer.add(**decision(first + 1, [True, True]))
    assert buffer.obs[:, 0, 0].tolist() == [5.0, 6.0]
    assert buffer.extras["value"][:, 1].tolist() == [50.0, 60.0]
    assert buffer.truncated.sum() == len(buffer.final_obs) == 3
    # rows in the order of truncated's True entries: (0, 1), (1, 0), (1, 1)
    assert buffer.final_obs[:, 0].tolist() == [501.0, 600.0, 601.0]


def test_memory_is_kept():
    buffer = RolloutBuffer(1)
    buffer.add(**decision(1, [False]))
    before = buffer.obs.data_ptr()
    buffer.add(**decision(2, [False]))
    assert buffer.obs.data_ptr() == before
