"""Work side by side, on the processors that this process may use."""

import os
from concurrent.futures import ThreadPoolExecutor


def run(function, jobs):
    """Calls a function with the arguments of each job, and gives what it returns, in order."""
    if len(jobs) <= 1:
        return [function(*job) for job in jobs]
    with ThreadPoolExecutor(min(len(jobs), processors())) as pool:
        return list(pool.map(lambda job: function(*job), jobs))


def processors():
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
