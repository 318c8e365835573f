"""Work side by side, on the processors that this process may use."""

import ctypes
import functools
import importlib
import os
from concurrent.futures import ThreadPoolExecutor

import keras


def run(function, jobs):
    """Calls a function with the arguments of each job, and gives what it returns, in order.

    The calling thread works too, so that it never waits for one that the system has not started.
    """
    results = [None] * len(jobs)
    numbers = iter(range(len(jobs)))  # each number goes to one thread

    def work():
        for number in numbers:
            results[number] = function(*jobs[number])

    count = min(len(jobs), processors())
    if count <= 1:
        work()
    elif _parallel_of_openmp() is None or os.getpid() != _PROCESS:
        _in_pool(work, count)
    else:
        _in_openmp(work, count)
    return results


def processors():
    """How many threads work: as many as PyTorch computes in, or as there are processors."""
    if _torch() is not None:
        return _torch().get_num_threads()
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _in_pool(work, count):
    helpers = [_pool(count - 1).submit(work) for _ in range(count - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


def _in_openmp(work, count):
    """Works in the threads that PyTorch computes in.

    After their work they spin for some milliseconds, and would keep a processor from others.
    """
    errors = []

    def call(_):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    _parallel_of_openmp()(_FUNCTION(call), None, count, 0)
    if errors:
        raise errors[0]


_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()  # in a fork of it, OpenMP would wait for threads that are not there


@functools.cache
def _torch():
    """The module, if PyTorch is the backend."""
    return importlib.import_module("torch") if keras.backend.backend() == "torch" else None


@functools.cache
def _parallel_of_openmp():
    """The function of PyTorch's OpenMP that calls another in its threads; `None` if not GNU's."""
    if _torch() is None:
        return None
    try:
        parallel = ctypes.CDLL(_torch()._C.__file__).GOMP_parallel  # among what it is linked with
    except (OSError, AttributeError):
        return None
    parallel.argtypes = _FUNCTION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    parallel.restype = None
    return parallel


@functools.cache
def _pool(count):
    return ThreadPoolExecutor(count)


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
