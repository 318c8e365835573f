"""Random arguments and inputs: a `ValueError` that names the argument, or the reference's answer.

`pytest --hypothesis-profile long` tries 5,000 examples a layer, other ones each time.
"""

import inspect
import re

import keras
import numpy as np
import pytest
from building import PUBLIC_LAYERS, answer, inputs_of, make, numpy, signature_of
from building import randomize as randomize_all
from cases import FIRST_CASES
from hostile import examples
from hypothesis import given
from reference import REFERENCES
from test_reference import assert_close, randomize, sample

from keras_visattn import ops


@pytest.mark.parametrize("name", PUBLIC_LAYERS)
def test_a_layer_answers_as_the_reference_or_says_what_is_wrong(name, record_property):
    counts = {"tried": 0, "refused": 0, "answered": 0}

    @given(example=examples(name))
    def check(example):
        counts["tried"] += 1
        try:
            layer, found = build_and_call(name, example)
        except ValueError as error:
            counts["refused"] += 1
            assert_says_what_is_wrong(error, name, example)
            return
        assert np.isfinite(found).all()
        if example.inputs[0].size:
            assert_close(found, reference_of(name, example, layer))
        counts["answered"] += 1

    try:
        check()
    finally:
        tried, refused, answered = counts.values()
        record_property("examples", (name, tried, refused, tried - refused - answered))
    assert counts["refused"] < counts["tried"]


def build_and_call(name, example):
    """Makes a layer, gives it random weights, and calls it."""
    layer = PUBLIC_LAYERS[name](**example.arguments)
    first = example.arguments.get("data_format") == "channels_first"
    inputs = [to_channels_first(x) if first else x for x in example.inputs]
    shapes = [x.shape for x in inputs]
    layer.build(*shapes)
    layer.weights_by_path = randomize(layer)
    found = answer(layer, *inputs)
    assert found.shape == tuple(layer.compute_output_shape(*shapes))
    return layer, np.moveaxis(found, 1, -1) if first and found.ndim == 4 else found


def to_channels_first(x):
    return np.moveaxis(x, -1, 1) if x.ndim == 4 else x


def reference_of(name, example, layer):
    function = REFERENCES[name]
    known = inspect.signature(function).parameters
    takes_all = any(x.kind == x.VAR_KEYWORD for x in known.values())
    settings = {
        name: value
        for name, value in example.arguments.items()
        if (takes_all or name in known) and (value is not None or name == "position")
    }
    if isinstance(settings.get("pooling"), str):
        settings["pooling"] = (settings["pooling"],)
    inputs = [x.astype("float64") for x in example.inputs]
    joined = name in ("MultiHeadAttention", "TransformerDecoderBlock")
    return function(inputs if joined else inputs[0], layer.weights_by_path, **settings)[0]


def assert_says_what_is_wrong(error, name, example):
    text = str(error)
    assert "Received: " in text, text
    words = set(re.findall(r"\w+", text))
    assert words & {*signature_of(PUBLIC_LAYERS[name]), "input_shape", "inputs", "query"}, text
    if example.bad is not None and example.bad not in words:
        arguments = {**example.arguments, example.bad: example.allowed}
        with pytest.raises(ValueError):  # something else is wrong too
            build_and_call(name, example._replace(arguments=arguments))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", FIRST_CASES, ids=str)
def test_what_is_not_finite_stays_in_its_image(case, bad):
    if case.layer == "TokenEmbedding":
        pytest.skip("Its inputs are integers")
    layer, clean = make(case), inputs_of(case, batch=3)
    layer.build(*(x.shape for x in clean))
    randomize_all(layer)
    dirty = [x.copy() for x in clean]
    for x in dirty:
        x[1].reshape(-1)[0] = bad
    found, expected = answer(layer, *dirty), answer(layer, *clean)
    np.testing.assert_allclose(found[::2], expected[::2], atol=1e-5, rtol=1e-5)


WINDOWS = [
    ((9, 9), {"kernel_size": 3}),
    ((20, 5), {"kernel_size": (5, 3), "dilation_rate": (2, 1)}),
    ((18, 17), {"kernel_size": (3, 7), "padding": "valid"}),
]


@pytest.mark.parametrize("return_scores", [False, True])
@pytest.mark.parametrize(("size", "window"), WINDOWS)
def test_what_is_not_finite_stays_in_its_window(size, window, return_scores):
    for which, bad in ((1, np.nan), (1, np.inf), (2, np.nan), (2, -np.inf)):
        clean = [sample(1, *size, 2, 4, seed=seed) for seed in range(3)]
        dirty = [x.copy() for x in clean]
        dirty[which][0, 4, 3, 0, 0] = bad
        expected, found = (
            keras.tree.flatten(attend(maps, window, return_scores)) for maps in (clean, dirty)
        )
        for x, y in zip(found, expected, strict=True):
            windows = np.zeros(y.shape[1:4], bool)
            windows[(*windows_with((4, 3), size, **window), 0)] = True
            assert not np.isfinite(x[0][windows]).any()
            np.testing.assert_allclose(x[0][~windows], y[0][~windows], atol=1e-5)


def attend(maps, window, return_scores):
    tensors = [keras.ops.convert_to_tensor(x) for x in maps]
    return numpy(
        ops.local_attention_2d(
            *tensors, **window, return_scores=return_scores, implementation="core"
        )
    )


def windows_with(pixel, size, kernel_size, dilation_rate=1, padding="same"):
    """The rows and the columns of the windows that hold a pixel, as an index of both."""
    axes = zip(
        *(pixel, size, np.broadcast_to(kernel_size, 2), np.broadcast_to(dilation_rate, 2)),
        strict=True,
    )
    places = []
    for place, length, taps, rate in axes:
        span = (taps - 1) * rate
        first = 0 if padding == "valid" else -(span // 2)
        starts = range(first, first + length - (span if padding == "valid" else 0))
        seen = [
            n for n, start in enumerate(starts) if place in range(start, start + span + 1, rate)
        ]
        places.append(seen)
    return np.ix_(*places)
