import math

import numpy as np
import pytest
import torch

from diffpolicy_rl.experience.chunk_queue import ChunkQueue
from diffpolicy_rl.runtime.chunk import ChunkRunner
from diffpolicy_rl.runtime.errors import BundleError
from tests.runtime.planned import Background, Planner, run

REPEATABLE = {"derandomize": True, "deadline": None, "database": None}


@pytest.mark.parametrize(("horizon", "execute"), [(4, 1), (4, 3), (4, 4), (1, 1)])
def test_receding_equals_the_queue_that_agents_are_trained_with(horizon, execute):
    rng, robots = np.random.default_rng(0), 4
    chunks = [None] * robots
    runners = [ChunkRunner(lambda obs, row=row: chunks[row], horizon, execute) for row in range(robots)]
    queue = ChunkQueue(execute, robots)
    for _ in range(300):
        needs = queue.needs()
        fresh = torch.from_numpy(rng.normal(size=(robots, horizon, 2)).astype(np.float32))
        chunks[:] = fresh.numpy()
        queue.put(needs, fresh[needs])
        ours = np.stack([runner({}) for runner in runners])
        theirs = queue.pop().numpy()
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
        done = rng.random(robots) < 0.15
        queue.reset(torch.from_numpy(done))
        for row in np.flatnonzero(done):
            runners[row].reset()


def test_receding_asks_only_when_it_must():
    planner = Planner(4)
    assert run(ChunkRunner(planner, 4, 3), 7) == [[0, 0], [1, 0], [2, 0], [3, 3], [4, 3], [5, 3], [6, 6]]
    assert planner.asked == [{}] * 3


def test_ensemble_by_hand():
    chunks = iter(np.arange(12.0).reshape(4, 3, 1))  # at tick 2: 2 (oldest), 4, 6; at tick 3: 5, 7, 9
    runner = ChunkRunner(lambda obs: next(chunks), 3, 1, "ensemble", decay=0.5)
    w = [1.0, math.exp(-0.5), math.exp(-1.0)]
    expected = [0, (w[0] * 1 + w[1] * 3) / sum(w[:2]), (2 * w[0] + 4 * w[1] + 6 * w[2]) / sum(w)]
    expected.append((5 * w[0] + 7 * w[1] + 9 * w[2]) / sum(w))
    assert [runner({})[0] for _ in range(4)] == pytest.approx(expected)


def test_ensemble_keeps_the_type():
    runner = ChunkRunner(lambda obs: np.ones((3, 1), np.float32), 3, 1, "ensemble")
    assert [runner({}).dtype for _ in range(3)] == [np.float32] * 3


def test_ensembles_default_weights_are_the_papers():
    chunks = iter([np.array([[0.0], [1.0]]), np.array([[0.0], [5.0]])])
    runner = ChunkRunner(lambda obs: next(chunks), 2, 1, "ensemble")
    runner({})
    assert runner({})[0] == pytest.approx(1 / (1 + math.exp(-0.01)))  # the oldest weighs most


def test_ensemble_may_ask_less_often_and_forgets_on_reset():
    planner = Planner(4)
    runner = ChunkRunner(planner, 4, 2, "ensemble", decay=0.0)
    assert run(runner, 5) == [[0, 0], [1, 0], [2, 1], [3, 1], [4, 3]]  # planned in 0; in 0 and 2; in 2 and 4
    runner.reset()
    assert run(runner, 1, start=9) == [[9, 9]]
    assert len(planner.asked) == 4


@pytest.mark.parametrize("lead", [(), (3,)])
def test_warm_starts(lead):
    drawn = iter(range(100))

    def draw():
        return np.full((*lead, 4, 2), float(next(drawn)))

    given_noise = []

    def policy(obs, noise):
        given_noise.append(noise[..., 0].reshape(-1, 4)[-1].tolist())
        return np.zeros((4, 2))

    def noises(warm_start, ticks=7):
        given_noise.clear()
        runner = ChunkRunner(policy, 4, 3, noise=draw, warm_start=warm_start)
        run(runner, ticks)
        runner.reset()
        run(runner, 1)
        return given_noise

    assert noises("fresh") == [[0] * 4, [1] * 4, [2] * 4, [3] * 4]
    assert noises("same") == [[4] * 4] * 3 + [[5] * 4]
    assert noises("shifted") == [[6] * 4, [6, 7, 7, 7], [7, 8, 8, 8], [9] * 4]


def test_shifting_in_the_background_counts_the_ticks_that_passed():
    background, seen = Background(at_once=True), []

    def policy(obs, noise):
        seen.append(noise[:, 0].tolist())
        return np.zeros((4, 1))

    drawn = iter(range(10))
    draw = lambda: np.full((4, 1), float(next(drawn)))  # noqa: E731
    run(ChunkRunner(policy, 4, 2, "prefetch", noise=draw, warm_start="shifted", submit=background), 3)
    assert seen == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2]]


def test_noise_that_has_no_time_is_not_shifted():
    runner = ChunkRunner(lambda obs, noise: np.zeros((4, 1)), 4, 2, noise=lambda: np.zeros(7), warm_start="shifted")
    with pytest.raises(BundleError, match=r"noise of shape \(7,\) cannot be shifted in time"):
        runner({})


def test_what_was_planned_stays_as_it_was():
    chunk = np.zeros((3, 1))
    runner = ChunkRunner(lambda obs: chunk, 3, 3)
    runner({})
    chunk[:] = 7
    assert runner({}).tolist() == [0]


@pytest.mark.parametrize("shape", [(3,), (3, 2, 1), (2, 2), ()])
def test_chunks_of_another_shape_are_refused(shape):
    with pytest.raises(BundleError, match=r"the policy returned actions of shape .* not \(3, D\)"):
        ChunkRunner(lambda obs: np.zeros(shape), 3, 3)({})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"execute": 5}, "execute=5 must be from 1 to the horizon, 4"),
        ({"execute": 0}, "execute=0 must be from 1"),
        ({"mode": "fast"}, "mode=fast must be one of receding, prefetch, ensemble, realtime"),
        ({"warm_start": "old"}, "warm_start=old must be one of fresh, same, shifted"),
        ({"share": 1.5}, "share=1.5 must be from 0 to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(BundleError, match=message):
        ChunkRunner(Planner(4), **({"horizon": 4, "execute": 2} | settings))
