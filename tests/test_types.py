"""The types of the public API: complete, true, and of use to a checker."""

import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import keras
import numpy as np
import pytest
from building import PUBLIC_LAYERS, signature_of

from keras_visattn import (
    complexity,
    distribution,
    layers,
    models,
    ops,
    projections,
    surgery,
    visualize,
    weights,
)
from keras_visattn.surgery import reporting

ROOT = Path(__file__).parents[1]
X = np.ones((1, 2, 2, 2, 2), "float32")

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="types are the same under every backend"
)

MODULES = (
    *(complexity, distribution, layers, models, ops, projections, surgery, visualize, weights),
    reporting,
)
PUBLIC = {
    f"{module.__name__.partition('.')[2]}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if not name.startswith("_")
    and (inspect.isclass(value) or inspect.isfunction(value))
    and value.__module__.startswith(module.__name__)
}


def members_of(value):
    """A function; or what users call of a class, without what Keras calls of it."""
    if inspect.isfunction(value):
        return [value]
    called = ("__init__", "call", "__call__")
    if any(cls.__module__.startswith("keras.") for cls in value.__mro__):
        named = [name for name in called if name in dir(value)]
    else:
        named = [name for name in dir(value) if name in called or not name.startswith("_")]
    found = (inspect.getattr_static(value, name) for name in named)
    found = (x.fget if isinstance(x, property) else x for x in found)
    return [x for x in found if inspect.isfunction(x) and x.__module__.startswith("keras_visattn.")]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_and_answer_has_a_type(name):
    members = members_of(PUBLIC[name])
    assert members
    for member in members:
        signature = inspect.signature(member)
        named = [p for p in signature.parameters.values() if p.name != "self"]
        untyped = [p.name for p in named if p.annotation is inspect.Parameter.empty]
        assert not untyped, f"{member.__qualname__}: {untyped}"
        assert signature.return_annotation is not inspect.Signature.empty, member.__qualname__


def test_mypy_accepts_the_package_and_right_calls_and_reports_wrong_ones():
    command = [sys.executable, "-m", "mypy", "--cache-dir", ".pytest_cache/mypy"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("name", PUBLIC_LAYERS)
def test_keyword_arguments_are_those_of_the_classes_behind_a_layer(name):
    layer = PUBLIC_LAYERS[name]
    own = dict(inspect.signature(layer.__init__).parameters)
    (dictionary,) = typing.get_args(own.pop("kwargs").annotation)
    kwargs = typing.get_type_hints(dictionary)
    of_keras = {"activity_regularizer", "autocast", "dtype", "name", "trainable"}
    assert (own.keys() | kwargs.keys()) - {"self"} == signature_of(layer).keys() | of_keras


def words_of(annotation):
    if typing.get_origin(annotation) is typing.Literal:
        return set(typing.get_args(annotation))
    return set().union(*map(words_of, typing.get_args(annotation)))


CHOICES = [  # function, arguments before the one that is chosen, its name
    (layers.AugmentedConv2D, (32, 3), "padding"),
    (layers.AugmentedConv2D, (32, 3), "position"),
    (layers.CBAM, (), "order"),
    (layers.ChannelAttention, (), "pooling"),
    (layers.LocalSelfAttention2D, (8,), "padding"),
    (layers.LocalSelfAttention2D, (8,), "position"),
    (layers.RelativePositionEmbedding2D, (), "extrapolation"),
    (layers.image_layer.ImageLayer, (), "data_format"),
    (models.ResNet, (), "attention"),
    (models.ResNet, (), "stem"),
    (models.WideResNet, (), "attention"),
    (models.MnasNet, (), "attention"),
    (models.RetinaNet, (None, 2), "attention"),
    (ops.attention, (X[0], X[0], X[0]), "implementation"),
    (ops.local_attention_2d, (X, X, X, None, None, 1), "padding"),
    (ops.resize_table, (X[0, 0, :1], 2), "extrapolation"),
    (surgery.add_cbam, (None,), "where"),
    (visualize.grad_cam, (None, None), "method"),
    (complexity.Profile.table, (complexity.Profile("", [], 0),), "unit"),
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda x: f"{x[0].__qualname__}.{x[2]}")
def test_the_words_of_a_type_are_those_that_are_accepted(choice):
    function, arguments, name = choice
    parameter = inspect.signature(function).parameters[name]
    with pytest.raises(ValueError, match=f"`{name}` must be one of") as error:
        function(*arguments, **{name: ("no such",) if name == "pooling" else "no such"})
    accepted = re.findall(r"'([^']+)'", str(error.value).partition("Received")[0])
    assert words_of(parameter.annotation) == set(accepted)
    if "None" in str(error.value):
        assert type(None) in typing.get_args(parameter.annotation)
