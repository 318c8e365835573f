"""Gradients of every case in float64, for `test_gradients.py` to compare with.

`KERAS_BACKEND=tensorflow python tests/saved_gradients.py FOLDER` writes `0.npz`, `1.npz`, ... in
the order of `cases.py`. On the other backends Keras computes in float32, whatever it is given.
"""

import contextlib
import sys
from pathlib import Path

import keras
import numpy as np
from building import inputs_of, make, numpy, randomize
from cases import CASES
from gradients import gradients


@contextlib.contextmanager
def float64():
    """Makes layers of float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_floatx("float32")


def example_of(case, dtype="float64"):
    """A layer of a case with random weights, its inputs, and factors of its outputs."""
    layer, inputs = make(case), [x.astype(dtype) for x in inputs_of(case)]
    layer.build(*(x.shape for x in inputs))
    randomize(layer)
    shape = layer.compute_output_shape(*(x.shape for x in inputs))
    return layer, inputs, np.random.default_rng(4).normal(size=shape).astype(dtype)


def loss_of(layer, inputs, factors):
    return float((numpy(layer(*inputs)) * factors).sum())


def flat(groups):
    """Joins the gradients of the inputs and those of the weights."""
    return [np.asarray(x) for group in groups for x in group]


def main(folder):
    with float64():
        for index, case in enumerate(CASES):
            np.savez(folder / f"{index}.npz", *flat(gradients(*example_of(case))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
