"""Tasks on maps that only attention can solve, and that only relative positions can.

Every pixel gets an answer of its own, from a place that no convolution here can see.
"""

import keras
import numpy as np
import pytest
from keras import layers

import keras_visattn

SIDE, COLORS, REACH = 8, 8, 3


def far_match(count, seed):
    """The first pixel has a colour; one other has it too, and a bit. What is the bit?

    The other lies four or more rows and columns away. All further pixels have other colours, and
    bits of their own.
    """
    draw = np.random.default_rng(seed)
    colors = draw.integers(COLORS - 1, size=(count, SIDE, SIDE))
    bits = draw.integers(2, size=(count, SIDE, SIDE))
    wanted = draw.integers(COLORS, size=count)
    colors += colors >= wanted[:, None, None]
    rows, columns = draw.integers(4, SIDE, size=(2, count))
    every = np.arange(count)
    colors[every, 0, 0] = colors[every, rows, columns] = wanted
    bits[:, 0, 0] = 0
    labels = np.full((count, SIDE, SIDE), -1)
    labels[:, 0, 0] = bits[every, rows, columns]
    images = np.concatenate([np.eye(COLORS)[colors], 2 * bits[..., None] - 1], axis=-1)
    return images.astype("float32"), labels


def left_of(count, seed):
    """What colour has the pixel three columns to the left? Colours are random."""
    draw = np.random.default_rng(seed)
    colors = draw.integers(2, size=(count, SIDE, SIDE))
    labels = np.full((count, SIDE, SIDE), -1)
    labels[:, :, REACH:] = colors[:, :, :-REACH]
    return np.eye(2)[colors].astype("float32"), labels


def accuracy(task, layer, epochs):
    """Trains the layer between two 1x1 convolutions, and gives the share of right answers."""
    images, labels = task(2_048, seed=0)
    inputs = keras.Input(images.shape[1:])
    x = layers.Conv2D(16, 1, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(layers.ReLU()(layer(x))))
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-2, 32 * epochs)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1),
    )
    model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)
    images, labels = task(512, seed=1)
    asked = labels >= 0
    return np.mean(model.predict(images, verbose=0).argmax(-1)[asked] == labels[asked])


def convolution():
    return layers.Conv2D(16, 3, padding="same")


def augmented(position):
    return keras_visattn.layers.AugmentedConv2D(
        16, 3, total_key_dim=16, total_value_dim=8, num_heads=1, position=position
    )


def local(position):
    return keras_visattn.layers.LocalSelfAttention2D(16, 7, num_heads=1, position=position)


def test_only_attention_matches_a_far_pixel():
    assert accuracy(far_match, convolution(), epochs=10) < 0.6
    assert accuracy(far_match, augmented(None), epochs=30) > 0.9


@pytest.mark.parametrize("attention", [augmented, local])
def test_only_relative_positions_tell_left_of(attention):
    assert accuracy(left_of, attention(None), epochs=10) < 0.7
    assert accuracy(left_of, attention("relative"), epochs=10) > 0.95


def test_a_small_convolution_does_not_tell_left_of():
    assert accuracy(left_of, convolution(), epochs=10) < 0.7
