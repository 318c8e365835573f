"""Saves a model and its pictures, for `test_visualize.py` to compare with those of another backend.

`KERAS_BACKEND=jax python tests/saved_maps.py FOLDER` writes `model.keras` and `maps.npz`.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from building import randomize

from keras_visattn import layers
from keras_visattn.visualize import attention_maps, grad_cam

IMAGES = np.random.default_rng(6).random((2, 12, 10, 3)).astype("float32")


def model():
    images = keras.Input((12, 10, 3))
    x = layers.LocalSelfAttention2D(8, 3, num_heads=2)(images)
    x = layers.CBAM(reduction_ratio=4, kernel_size=3)(x)
    x = layers.AugmentedConv2D(8, 3, total_key_dim=8, total_value_dim=4, num_heads=2)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    made = keras.Model(images, keras.layers.Dense(4, activation="softmax")(x))
    randomize(made)
    return made


def maps_of(model):
    """Gives all pictures of a model by name."""
    cams = {name: grad_cam(model, IMAGES, class_index=1, method=name) for name in METHODS}
    found = attention_maps(model, IMAGES, query=(3, 4))
    return cams | {f"{path} {name}": x for path, maps in found.items() for name, x in maps.items()}


METHODS = ("grad_cam", "grad_cam++")


def main(folder):
    made = model()
    made.save(folder / "model.keras")
    np.savez(folder / "maps.npz", **maps_of(made))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
