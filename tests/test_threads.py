"""The threads that work side by side on the CPU."""

import threading
import time

import keras
import numpy as np
import pytest
from parallel_models import called
from test_reference import sample

from keras_visattn.kernels import attention, threads, windows


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(threads, "processors", lambda: 2)


def test_results_are_in_order_and_from_several_threads(two_threads):
    seen = set()

    def work(number):
        seen.add(threading.get_native_id())
        time.sleep(0.005)
        return number**2

    assert threads.run(work, [(number,) for number in range(20)]) == [n**2 for n in range(20)]
    assert len(seen) == 2
    assert threads.run(work, []) == []


@pytest.mark.parametrize("failing", [0, 7])
def test_an_error_of_a_job_is_raised(failing, two_threads):
    def work(number):
        time.sleep(0.001)
        if number == failing:
            raise MemoryError(number)

    with pytest.raises(MemoryError, match=str(failing)):
        threads.run(work, [(number,) for number in range(8)])
    assert threads.run(str, [(1,), (2,)]) == ["1", "2"]


def test_several_threads_may_work_at_once(two_threads):
    answers = {}

    def work(start):
        answers[start] = threads.run(lambda number: number + start, [(n,) for n in range(200)])

    workers = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert answers == {1000 * n: [1000 * n + i for i in range(200)] for n in range(4)}


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's own setting")
def test_as_many_threads_as_pytorch_has():
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert threads.processors() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("work", ["windows", "attention"])
def test_loops_in_two_threads_answer_as_in_one(work, monkeypatch):
    if work == "windows":
        module, settings = windows, {"window": ((3, 3), (1, 1), (1, 1))}
        tensors = [sample(2, 40, 9, 2, 4, seed=n) for n in range(3)]
        tensors += [sample(3, 2, seed=n) for n in (3, 4)]
    else:
        module, settings = attention, {"scale": 0.5}
        tensors = [sample(1, 1, 300, 4, seed=n) for n in range(3)]

    def run(count):
        monkeypatch.setattr(threads, "processors", lambda: count)
        monkeypatch.setattr(attention, "processors", lambda: count)
        return called(module, tensors, settings)

    for one, two in zip(run(1), run(2), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-4, rtol=1e-5)
