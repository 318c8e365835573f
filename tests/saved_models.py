"""Saves a model of every case and its answer, for `test_layers.py` to read under another backend.

`KERAS_BACKEND=jax python tests/saved_models.py FOLDER` writes `0.keras`, `0.npy`, `1.keras`, ...
in the order of `cases.py`.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from building import answer, inputs_of, make, randomize
from cases import CASES


def model_of(case):
    inputs = [keras.Input(shape[1:]) for shape in case.shapes]
    layer = make(case)
    model = keras.Model(inputs, layer(*inputs))
    randomize(layer)
    return model


def main(folder):
    for index, case in enumerate(CASES):
        model = model_of(case)
        model.save(folder / f"{index}.keras")
        np.save(folder / f"{index}.npy", answer(model, inputs_of(case)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
