import math
import subprocess
import sys
import threading
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpolicy_rl.experience.chunk_queue import ChunkQueue
from diffpolicy_rl.runtime.chunk import ChunkRunner
from diffpolicy_rl.runtime.errors import BundleError

REPEATABLE = {"derandomize": True, "deadline": None, "database": None}


class Background:
    """Answers when told to."""

    def __init__(self, at_once=False):
        self.work, self.at_once = [], at_once

    def __call__(self, function):
        answer = Future()
        self.work.append((function, answer))
        if self.at_once:
            self.answer()
        return answer

    def answer(self, index=-1):
        function, answer = self.work[index]
        try:
            answer.set_result(function())
        except Exception as error:
            answer.set_exception(error)


class Planner:
    """Plans (tick it is for, tick it was planned in), and keeps what it was asked with."""

    def __init__(self, horizon):
        self.horizon, self.asked = horizon, []

    def __call__(self, obs, **keywords):
        self.asked.append(keywords)
        tick = float(obs["tick"][0])
        return np.array([[tick + row, tick] for row in range(self.horizon)])


def at(tick):
    return {"tick": np.array([tick])}


def run(runner, ticks, start=0):
    """What was executed, as lists."""
    executed = [runner(at(tick)) for tick in range(start, start + ticks)]
    return [None if action is None else action.tolist() for action in executed]


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


def test_prefetch_by_hand():
    background, planner = Background(), Planner(6)
    runner = ChunkRunner(planner, 6, 4, "prefetch", submit=background)
    assert run(runner, 2) == [None, None]  # never waits
    assert len(background.work) == 1
    background.answer()
    assert run(runner, 1, 2) == [[2, 0]]  # what was for ticks 0 and 1 is skipped; half of four is left: asks
    assert len(background.work) == 2
    assert run(runner, 3, 3) == [[3, 0], [4, 0], [5, 0]]  # late: the old chunk goes on past its four
    background.answer()
    assert run(runner, 1, 6) == [[6, 2]]
    assert run(runner, 1, 7) == [[7, 2]]
    assert runner(at(8)) is None  # the chunk of tick 2 ends with tick 7, and nobody answered
    assert len(background.work) == 3
    assert planner.asked == [{}, {}]


@pytest.mark.parametrize(("share", "asked"), [(0.0, [0, 4, 8]), (0.5, [0, 2, 4, 6, 8]), (0.25, [0, 3, 6, 9])])
def test_prefetch_asks_when_the_share_is_left(share, asked):
    planner = Planner(6)
    executed = run(ChunkRunner(planner, 6, 4, "prefetch", share=share, submit=Background(at_once=True)), 10)
    assert sorted({int(planned) for _, planned in executed}) == asked


def test_a_chunk_that_comes_too_late_is_dropped():
    background = Background()
    runner = ChunkRunner(Planner(3), 3, 3, "prefetch", submit=background)
    run(runner, 3)
    background.answer()
    assert run(runner, 1, 3) == [None]
    assert runner.late == 1
    assert len(background.work) == 2  # and asked anew
    background.answer()
    assert run(runner, 1, 4) == [[4, 3]]


@pytest.mark.parametrize("mode", ["prefetch", "realtime"])
def test_a_policy_that_raises_is_survived(mode):
    background, planner = Background(at_once=True), Planner(2)

    def policy(obs, **keywords):
        tick = int(obs["tick"][0])
        if 3 <= tick < 7:
            raise RuntimeError("lost")
        return np.zeros((5, 2)) if tick == 7 else planner(obs)

    runner = ChunkRunner(policy, 2, 2, mode, submit=background)
    executed = run(runner, 10)
    assert [action is None for action in executed] == [tick in (4, 5, 6, 7) for tick in range(10)]
    assert runner.failures == 5  # four that raised, and a chunk of another length
    assert isinstance(runner.error, BundleError)
    assert "of shape (5, 2), not (2, D)" in str(runner.error)
    runner.reset()
    assert (runner.failures, runner.error) == (0, None)


def test_a_background_that_cannot_start_is_survived():
    def full(work):
        raise RuntimeError("can't start new thread")

    runner = ChunkRunner(Planner(2), 2, 2, "prefetch", submit=full)
    assert run(runner, 2) == [None, None]
    assert runner.failures == 2


def test_reset_drops_what_is_on_its_way():
    background = Background()
    runner = ChunkRunner(Planner(4), 4, 4, "prefetch", submit=background)
    run(runner, 1, start=50)
    runner.reset()
    assert run(runner, 1, start=100) == [None]
    background.answer(0)
    assert run(runner, 1, start=101) == [None]  # the answer to a question of the last episode
    background.answer(1)
    assert run(runner, 1, start=102) == [[102, 100]]


def test_threads_never_hold_up_the_loop():
    """The default background, with a policy that hangs: calls return, and after a reset the next call is answered."""
    release, threads = threading.Event(), []

    def policy(obs):
        threads.append(threading.current_thread())
        if len(threads) == 1:
            release.wait(20)
        return obs["tick"] + np.array([[0.0], [1.0]])

    runner = ChunkRunner(policy, 2, 2, "prefetch")
    assert run(runner, 100) == [None] * 100
    runner.reset()
    runner(at(100))
    while len(threads) < 2:
        pass
    threads[1].join(20)
    assert runner(at(101)).tolist() == [101]
    release.set()
    threads[0].join(20)
    assert len(threads) <= 3  # one at a time in each episode


def test_a_policy_that_hangs_does_not_keep_the_program_from_ending():
    program = "import time; from diffpolicy_rl.runtime.chunk import ChunkRunner\n"
    program += "print(ChunkRunner(lambda obs: time.sleep(100), 2, 2, 'prefetch')({}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_the_policy_in_the_background_sees_the_observation_as_it_was():
    background, obs = Background(), at(0)
    runner = ChunkRunner(Planner(3), 3, 3, "prefetch", submit=background)
    runner(obs)
    obs["tick"][0] = 77
    background.answer()
    assert runner(obs).tolist() == [1, 0]


def test_realtime_by_hand():
    background, planner = Background(), Planner(8)
    runner = ChunkRunner(planner, 8, 4, "realtime", share=0.0, submit=background)
    run(runner, 3)
    background.answer()  # it took three ticks
    assert run(runner, 1, 3) == [[3, 0]]
    assert runner.delay == 3
    assert planner.asked == [{}]  # the first of an episode has no prefix
    assert len(background.work) == 2  # one of four is left, and a delay of three is foreseen
    background.answer()
    keywords = planner.asked[1]
    assert keywords["delay"] == 3
    assert keywords["prefix"].tolist() == [[3, 0], [4, 0], [5, 0]] + [[0, 0]] * 5
    assert run(runner, 5, 4) == [[4, 0], [5, 0], [6, 3], [7, 3], [8, 3]]  # committed ones first, as they were


def test_delay_is_the_95th_percentile_of_the_last_fifty():
    background = Background()
    runner = ChunkRunner(lambda obs, **_: np.zeros((30, 1)), 30, 1, "realtime", submit=background)
    assert runner.delay == 0
    runner(at(0))
    delays = []
    for wait in [9] * 3 + [1] * 48:
        for _ in range(wait - 1):
            runner(at(0))
        background.answer()
        runner(at(0))  # takes the chunk, and asks for the next
        delays.append(runner.delay)
    assert delays[:3] == [9] * 3
    assert delays[49] == 9  # three of fifty: more than 5 %
    assert delays[50] == 1  # two of fifty
    runner.reset()
    assert runner.delay == 0


@settings(max_examples=150, **REPEATABLE)
@given(
    mode=st.sampled_from(["prefetch", "realtime", "receding", "ensemble"]),
    horizon=st.integers(1, 7),
    data=st.data(),
    events=st.lists(st.sampled_from(["tick", "answer", "answer", "fail", "reset", "tick", "old"]), max_size=80),
)
def test_every_action_was_planned_for_its_tick(mode, horizon, data, events):
    background, planner = Background(), Planner(horizon)
    execute, share = data.draw(st.integers(1, horizon)), data.draw(st.floats(0, 1))
    runner = ChunkRunner(planner, horizon, execute, mode, share=share, submit=background)
    tick, began = 0, 0
    for event in events:
        if event == "tick":
            action = runner(at(tick))
            assert (action is not None) or mode in ("prefetch", "realtime")
            if action is not None:
                assert action[0] == pytest.approx(tick)  # planned for now
                assert max(began, tick - horizon + 1) <= action[1] <= tick  # from an observation of this episode
            tick += 1
        elif event == "reset":
            runner.reset()
            began = tick = tick + 10
        else:
            waiting = [index for index, (_, answer) in enumerate(background.work) if not answer.done()]
            if waiting and event == "fail":
                background.work[waiting[-1]][1].set_exception(RuntimeError("lost"))
            elif waiting:
                background.answer(waiting[0 if event == "old" else -1])
    for keywords in planner.asked:
        if keywords:
            assert mode == "realtime"
            d = keywords["delay"]
            assert 1 <= d < horizon
            committed = keywords["prefix"][:d, 0]
            assert np.array_equal(committed, committed[0] + np.arange(d))  # tick after tick
            assert not keywords["prefix"][d:].any()


@settings(max_examples=60, **REPEATABLE)
@given(waits=st.lists(st.integers(1, 8), min_size=1, max_size=8), mode=st.sampled_from(["prefetch", "realtime"]))
def test_a_policy_in_time_leaves_no_gaps(waits, mode):
    """A = 8 of H = 16: as long as two calls together take no more than H, nothing runs dry."""
    background = Background()
    runner = ChunkRunner(Planner(16), 16, 8, mode, submit=background)
    runner(at(0))
    background.answer()
    tick, executed = 1, []
    for wait in waits:
        asked = len(background.work)
        while len(background.work) == asked:
            executed.append(runner(at(tick)))
            tick += 1
        for _ in range(wait - 1):
            executed.append(runner(at(tick)))
            tick += 1
        background.answer()
    assert [action[0] for action in executed] == list(range(1, tick))


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
