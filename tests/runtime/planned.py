"""A policy that says what it planned when, and a background that answers when told to."""

from concurrent.futures import Future

import numpy as np


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
