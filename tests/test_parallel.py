"""Threads, processes and seeds: the answers are those of one thread, and of one seed."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from building import PUBLIC_LAYERS, inputs_of, make, numpy, randomize, signature_of
from cases import CASES, FIRST_CASES
from parallel_models import (
    in_child,
    load_and_predict,
    loops,
    made,
    predictions,
    served,
    trained,
)

from keras_visattn.kernels import threads

BACKEND = keras.backend.backend()
forks = pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no fork")
# A process with threads is forked, which is what is tested.
with_threads = pytest.mark.filterwarnings("ignore:.*fork", "ignore:.*multi-threaded")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return made()


@pytest.fixture(scope="module")
def serial(model):
    return predictions(model)


def assert_equal(found, expected):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


def differ(found, other):
    return any(np.any(x != y) for x, y in zip(found, other, strict=True))


def in_eight_threads(function):
    """Calls a function in eight threads that begin together; gives what each call gave."""
    start = threading.Barrier(8)

    def work(_):
        start.wait(60)
        return function()

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, range(8)))


def test_eight_threads_predict_as_one(model, serial):
    for found in in_eight_threads(served(model)):
        assert_equal(found, serial)


def test_eight_threads_call_the_loops_as_one():
    expected = loops()
    for found in in_eight_threads(loops):
        assert_equal(found, expected)


def test_one_thread_trains_while_others_predict(model, serial):
    keras.utils.set_random_seed(1)
    expected = trained(made(), shuffle=False)
    keras.utils.set_random_seed(1)
    other, predict, stop, found = made(), served(model), threading.Event(), []

    def work():
        while not stop.is_set():
            found.append(predict())

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(work) for _ in range(3)]
        try:
            weights = trained(other, shuffle=False)
        finally:
            stop.set()
        for worker in workers:
            worker.result()
    assert_equal(weights, expected)
    assert len(found) >= 3
    for answers in found:
        assert_equal(answers, serial)


def test_a_seed_trains_to_the_same_numbers_twice():
    def run(seed):
        keras.utils.set_random_seed(seed)
        model = made(dropout=0.5)
        return model.get_weights(), trained(model)

    (start, end), (same_start, same_end), (other_start, other_end) = run(4), run(4), run(5)
    assert not differ(start, same_start) and not differ(end, same_end)
    assert differ(start, other_start) and differ(end, other_end)


@pytest.mark.parametrize("case", FIRST_CASES, ids=str)
def test_a_seed_makes_the_same_weights_twice(case):
    def weights(seed):
        keras.utils.set_random_seed(seed)
        layer = make(case)
        layer.build(*case.shapes)
        return layer.get_weights()

    first = weights(4)
    assert not differ(first, weights(4))
    drawn = any(x.ndim > 1 and np.ptp(x) > 0 for x in first)
    assert differ(first, weights(5)) == drawn


DROPPING = [case for case in CASES if case.arguments.get("dropout")]


@pytest.mark.parametrize("case", DROPPING, ids=str)
def test_a_seed_drops_the_same_twice(case):
    owns = "seed" in signature_of(
        PUBLIC_LAYERS[case.layer]
    )  # then the global seed is nothing to it
    inputs = inputs_of(case)

    def answers(seed, global_seed):
        keras.utils.set_random_seed(global_seed if owns else seed)
        layer = make(case, **({"seed": seed} if owns else {}))
        layer.build(*case.shapes)
        randomize(layer)
        return [numpy(layer(*inputs, training=True)) for _ in range(2)]

    first = answers(4, 0)
    assert not differ(first, answers(4, 1))
    assert differ(first, answers(5, 0)) and differ(first[:1], first[1:])


def test_a_spawned_process_loads_and_predicts_the_same(model, serial, tmp_path):
    model.save(tmp_path / "model.keras")
    assert_equal(in_child("spawn", load_and_predict, tmp_path / "model.keras"), serial)


def meet():
    """Has two threads wait for each other, which one alone does for ever."""
    both = threading.Barrier(2, timeout=20)
    return threads.run(both.wait, [(), ()])


@forks
@with_threads
def test_a_forked_process_calls_the_loops_in_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(threads, "processors", lambda: 2)
    expected = loops()
    assert sorted(meet()) == [0, 1]
    assert_equal(in_child("fork", loops, seconds=60), expected)
    assert sorted(in_child("fork", meet, seconds=60)) == [0, 1]


@forks
@with_threads
@pytest.mark.skipif(BACKEND != "torch", reason="the backend's own threads do not survive a fork")
def test_a_forked_process_predicts_the_same(model, serial):
    assert_equal(in_child("fork", predictions, model, seconds=60), serial)
