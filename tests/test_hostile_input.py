"""Random arguments and inputs: a `ValueError` that names the argument, or the reference's answer.

`pytest --hypothesis-profile long` tries 5,000 examples a layer, other ones each time.
"""

import inspect
import re

import keras
import numpy as np
import pytest
from building import PUBLIC_LAYERS, answer, signature_of
from hostile import examples
from hypothesis import given
from reference import REFERENCES
from test_reference import assert_close, randomize

BACKEND = keras.backend.backend()
COUNTS = {}  # of each layer: examples tried, refused


@pytest.mark.parametrize("name", PUBLIC_LAYERS)
def test_a_layer_answers_as_the_reference_or_says_what_is_wrong(name):
    COUNTS[name] = [0, 0]

    @given(example=examples(name))
    def check(example):
        COUNTS[name][0] += 1
        try:
            layer, found = build_and_call(name, example)
        except ValueError as error:
            COUNTS[name][1] += 1
            assert_says_what_is_wrong(error, name, example)
            return
        assert np.isfinite(found).all()
        if example.inputs[0].size:
            assert_close(found, reference_of(name, example, layer))

    check()
    print(name, *COUNTS[name])


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
