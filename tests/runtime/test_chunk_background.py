"""Chunks that are asked for in the background: prefetch and real-time chunking."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpolicy_rl.runtime.chunk import ChunkRunner
from diffpolicy_rl.runtime.errors import BundleError
from tests.runtime.planned import Background, Planner, at, run

REPEATABLE = {"derandomize": True, "deadline": None, "database": None}


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


def test_what_is_nearly_computed_is_computed_before_the_program_ends():
    program = "import time; from diffpolicy_rl.runtime.chunk import ChunkRunner\n"
    program += "ChunkRunner(lambda obs: (time.sleep(0.2), print('done', flush=True)), 2, 2, 'prefetch')({})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("done\n", "")


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
