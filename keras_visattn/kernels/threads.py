"""Work side by side, on the processors that this process may use."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor


def run(function, jobs):
    """Calls a function with the arguments of each job, and gives what it returns, in order.

    The calling thread works too, so that it never waits for one that the system has not started.
    """
    results = [None] * len(jobs)
    numbers = iter(range(len(jobs)))  # each number goes to one thread

    def work():
        for number in numbers:
            results[number] = function(*jobs[number])

    count = min(len(jobs), processors()) - 1
    helpers = [_pool(count).submit(work) for _ in range(count)]
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()
    return results


@functools.cache
def _pool(count):
    return ThreadPoolExecutor(count)


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def processors():
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
