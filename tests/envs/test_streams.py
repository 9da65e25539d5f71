import torch

from diffpolicy_rl.envs.streams import episode_seeds, uniform
from diffpolicy_rl.streams import stream

ROWS = torch.arange(50)


def splitmix(state, n):
    """Steele, Lea & Flood's SplitMix64, in Python's unbounded integers."""
    words, mask = [], 2**64 - 1
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        words.append(z ^ (z >> 31))
    return words


def mix(z):
    return splitmix((z - 0x9E3779B97F4A7C15) % 2**64, 1)[0]


def test_numbers_equal_the_published_generator():
    key = 7
    for part in (3, 5):  # row, episode
        key = mix((mix(key) + part * 0x9E3779B97F4A7C15) % 2**64)
    expected = [((word >> 12) + 0.5) * 2.0**-52 for word in splitmix(key, 4)]
    assert uniform(7, torch.tensor([3]), torch.tensor([5]), 4)[0].tolist() == expected


def test_numbers_are_uniform_and_differ_by_seed_row_episode():
    numbers = uniform(0, ROWS, torch.zeros_like(ROWS), 400)
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 * (1 / 12 / numbers.numel()) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 2e-3
    for other in (uniform(1, ROWS, torch.zeros_like(ROWS), 400), uniform(0, ROWS, torch.ones_like(ROWS), 400)):
        assert abs(torch.corrcoef(torch.stack([numbers.flatten(), other.flatten()]))[0, 1]) < 0.04
    assert len(numbers.unique()) == numbers.numel()


def test_a_row_s_numbers_do_not_depend_on_the_other_rows():
    alone = uniform(4, torch.tensor([9]), torch.tensor([2]), 6)
    among = uniform(4, ROWS, torch.full_like(ROWS, 2), 6)
    assert torch.equal(among[9], alone[0])


def test_seeds_fit_every_simulator():
    seeds = episode_seeds(0, ROWS, ROWS)
    assert seeds.min() >= 0
    assert seeds.max() < 2**31
    assert len(seeds.unique()) == len(ROWS)


def test_keyed_generators_repeat_and_differ():
    first, again, other = (torch.randn(4, generator=stream(*key)) for key in ((1, 0, 2), (1, 0, 2), (1, 2, 0)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
