import asyncio
import contextlib
import gc
import threading
import time
import weakref

import pytest

from diffpolicy_rl.runtime.worker import Worker


class Thing:
    """What a weak reference can be held of."""


def test_calls_run_in_order_in_one_thread_that_is_not_this_one():
    async def run():
        worker = Worker()
        futures = [worker.submit(lambda n=n: (n, threading.get_ident())) for n in range(5)]
        results = [await future for future in futures]
        worker.stop()
        return results

    results = asyncio.run(run())
    assert [n for n, _ in results] == list(range(5))
    assert len({thread for _, thread in results} - {threading.get_ident()}) == 1


def test_an_error_comes_to_who_waits_and_the_thread_goes_on():
    async def run():
        worker = Worker()
        with pytest.raises(ZeroDivisionError):
            await worker.submit(lambda: 1 / 0)
        found = await worker.submit(lambda: 5)
        worker.stop()
        return found

    assert asyncio.run(run()) == 5


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_call_stays(fails, request):
    """Requests are large: neither the idle thread nor a cycle of an error and its frames may keep one."""

    def work(thing):
        return 1 / (0 if fails else 1)

    async def run():
        worker, thing = Worker(), Thing()
        known, call = weakref.ref(thing), lambda thing=thing: work(thing)
        del thing
        future = worker.submit(call)
        del call
        with contextlib.suppress(ZeroDivisionError):
            await future
        del future
        until = time.monotonic() + 5
        while known() is not None and time.monotonic() < until:
            await asyncio.sleep(0.01)
        alive = worker.alive
        worker.stop()
        return known() is None, alive

    gc.disable()
    request.addfinalizer(gc.enable)
    assert asyncio.run(run()) == (True, True)


def test_stopping_does_not_wait_and_ends_the_thread():
    async def run():
        worker, go = Worker(), threading.Event()
        worker.submit(lambda: go.wait(10))
        began = time.monotonic()
        worker.stop()
        assert time.monotonic() - began < 5
        assert worker.alive
        go.set()
        until = time.monotonic() + 5
        while worker.alive and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return worker.alive

    assert not asyncio.run(run())


def test_an_answer_that_nobody_waits_for_is_dropped():
    async def run():
        worker, go = Worker(), threading.Event()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        future = worker.submit(lambda: go.wait(10))
        future.cancel()
        go.set()
        found = await worker.submit(lambda: 7)
        worker.stop()
        return found

    errors = []
    assert asyncio.run(run()) == 7
    assert errors == []
