"""A small Transformer with random weights, and inputs for it."""

import numpy as np

from keras_visattn import models

SMALL = {"num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32, "num_heads": 2}
START, END = 1, 2


def tokens(*shape, vocabulary_size=13, seed=0):
    return np.random.default_rng(seed).integers(3, vocabulary_size, size=shape).astype("int32")


def small_model(seed=0, scale=0.3, **changes):
    """A model with random weights, large enough that its answers differ from place to place."""
    model = models.Transformer(13, **{**SMALL, **changes})
    draw = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        spread = scale * draw.normal(size=weight.shape)
        weight.assign(1 + spread if weight.path.endswith("gamma") else spread)
    return model


def mask_of(batch, length):
    """Hides the last places, another number of them in each row."""
    return np.arange(length) < length - np.arange(batch)[:, None]
