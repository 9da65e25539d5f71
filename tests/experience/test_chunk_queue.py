import pytest
import torch

from diffpolicy_rl.envs.make import make_env
from diffpolicy_rl.experience.chunk_queue import ChunkQueue
from diffpolicy_rl.training.driver import Driver
from diffpolicy_rl.types import DeployedPolicy


def test_by_hand():
    queue = ChunkQueue(2, 3)
    assert queue.needs().tolist() == [True, True, True]
    queue.put(
        queue.needs(), torch.tensor([[1.0, 2, 9], [3, 4, 9], [5, 6, 9]]).unsqueeze(2)
    )  # the third is not executed
    assert queue.needs().tolist() == [False, False, False]
    assert queue.pop().tolist() == [[1], [3], [5]]
    queue.reset(torch.tensor([False, True, False]))
    assert queue.needs().tolist() == [False, True, False]
    queue.put(queue.needs(), torch.tensor([[[7.0], [8.0]]]))
    assert queue.pop().tolist() == [[2], [7], [6]]
    assert queue.needs().tolist() == [True, False, True]
    queue.put(
        torch.tensor([True, True, True]), torch.tensor([[[10.0], [0]], [[11], [0]], [[12], [0]]])
    )  # cuts one short
    assert queue.pop().tolist() == [[10], [11], [12]]


def test_an_empty_queue_gives_nothing():
    queue = ChunkQueue(2, 2)
    with pytest.raises(AssertionError):
        queue.pop()
    queue.put(torch.tensor([True, False]), torch.zeros(1, 2, 1))
    with pytest.raises(AssertionError):
        queue.pop()


def test_what_was_popped_stays_as_it_was():
    queue = ChunkQueue(1, 1)
    chunks = torch.ones(1, 1, 2)
    queue.put(torch.tensor([True]), chunks)
    action = queue.pop()
    chunks.zero_()
    queue.put(torch.tensor([True]), torch.full((1, 1, 2), 5.0))
    assert action.tolist() == [[1, 1]]


@pytest.mark.parametrize("execute", [1, 3, 4])
def test_random_use_equals_plain_lists(execute):
    generator, envs = torch.Generator().manual_seed(0), 5
    queue, plain = ChunkQueue(execute, envs), [[] for _ in range(envs)]
    for _ in range(60):
        needs = queue.needs()
        assert needs.tolist() == [not left for left in plain]
        chunks = torch.randn(int(needs.sum()), 4, 2, generator=generator)
        for row, chunk in zip(needs.nonzero().flatten().tolist(), chunks, strict=True):
            plain[row] = list(chunk[:execute])
        queue.put(needs, chunks)
        assert torch.equal(queue.pop(), torch.stack([left.pop(0) for left in plain]))
        done = torch.rand(envs, generator=generator) < 0.2
        queue.reset(done)
        plain = [[] if over else left for left, over in zip(plain, done.tolist(), strict=True)]


class Linear(DeployedPolicy):
    """A chunk of four that depends on observation and noise; three are executed."""

    execute, noise_shape = 3, (4, 3)

    def forward(self, obs, noise):
        return torch.tanh(noise + obs[:, None, :3] * torch.linspace(-2, 2, 4).view(1, 4, 1))


def episodes(chunk, count):
    """Length and return of the first episodes of three Hoppers, and how many there were in each."""
    env = make_env("Hopper-v5", num_envs=3, chunk=chunk, seed=7, dtype=torch.float64)
    driver, (obs, _) = Driver(Linear(), env, seed=1), env.reset(seed=7)
    running, finished = torch.zeros(2, 3, dtype=torch.float64), [[], [], []]
    while min(map(len, finished)) < count:
        obs, _, terminated, truncated, info = env.step(driver.act(obs))
        running += torch.stack([info["executed"], info["rewards"].sum(1)])
        done = terminated | truncated
        driver.reset(done)
        for row in done.nonzero().flatten().tolist():
            finished[row].append(running[:, row].tolist())
            running[:, row] = 0
    return [row[:count] for row in finished]


def test_one_action_at_a_time_equals_whole_chunks():
    whole, single = episodes(chunk=3, count=4), episodes(chunk=1, count=4)
    lengths = [length for row in whole for length, _ in row]
    assert any(length % 3 for length in lengths)  # some episodes ended inside a chunk
    assert len(set(lengths)) > 3
    torch.testing.assert_close(torch.tensor(single), torch.tensor(whole), rtol=0, atol=1e-9)


def test_driver_refuses_other_chunks():
    with pytest.raises(ValueError, match="the policy executes 3 actions per call, the env takes 2"):
        Driver(Linear(), make_env("Hopper-v5", chunk=2), seed=0)
