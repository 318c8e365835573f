"""The promises that every layer keeps, over every row of `cases.py`."""

import functools
import inspect
import json
import warnings

import keras
import numpy as np
import pytest
from building import (
    PUBLIC_LAYERS,
    accepts_scores,
    answer,
    inputs_of,
    make,
    numpy,
    randomize,
    signature_of,
)
from cases import CASES, FIRST_CASES, IMAGE_CASES
from saved_models import model_of

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_layer = pytest.mark.parametrize("case", FIRST_CASES, ids=str)
each_image_case = pytest.mark.parametrize("case", IMAGE_CASES, ids=str)


def shapes_of(tree):
    return [tuple(x.shape) for x in keras.tree.flatten(tree)]


def fits(shape, declared):
    return len(shape) == len(declared) and all(
        size in (None, true) for size, true in zip(declared, shape, strict=True)
    )


@each_case
def test_eager_shape_is_the_declared_and_the_symbolic_one(case):
    layer = make(case)
    inputs = inputs_of(case)
    arguments = {"return_attention_scores": True} if accepts_scores(layer) else {}
    eager = shapes_of(layer(*inputs, **arguments))
    assert eager[0] == tuple(layer.compute_output_shape(*case.shapes))
    known = shapes_of(layer(*[keras.Input(batch_shape=s) for s in case.shapes], **arguments))
    assert known == eager
    if layer.name.startswith("gather_excite") and case.arguments.get("identity_start"):
        return  # a parametric gather over the whole map wants its size
    unknown = [keras.Input((*[None] * (len(s) - 2), s[-1])) for s in case.shapes]
    if len(case.shapes[0]) == 5:
        unknown = [keras.Input((None, None, *case.shapes[0][3:]))]
    for shape, declared in zip(eager, shapes_of(layer(*unknown, **arguments)), strict=True):
        assert fits(shape, declared)


@each_case
def test_config_holds_every_argument_and_makes_the_same_layer(case):
    layer = make(case)
    inputs = inputs_of(case)
    expected = answer(layer, *inputs)
    config = layer.get_config()
    assert set(signature_of(type(layer))) <= set(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = type(layer).from_config(
            json.loads(json.dumps(keras.saving.serialize_keras_object(layer)["config"]))
        )
    again.build(*case.shapes)
    again.set_weights(layer.get_weights())
    np.testing.assert_allclose(answer(again, *inputs), expected, atol=1e-6)


@each_case
def test_a_saved_model_answers_the_same(case, tmp_path):
    model = model_of(case)
    arrays = inputs_of(case)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(answer(loaded, arrays), answer(model, arrays), atol=1e-6)


# The key's bias adds one number to all logits of a query; batch normalization takes a bias away.
NO_GRADIENT = ("key/bias", "bam/excite/bias", "bam/spatial_3/bias")


@each_case
def test_every_weight_moves_in_one_step(case):
    model = model_of(case)
    layer = model.layers[-1]
    if not layer.trainable_weights:
        return  # nothing to learn
    before = [numpy(w.value) for w in layer.trainable_weights]
    arrays = inputs_of(case)
    target = np.random.default_rng(5).normal(size=answer(model, arrays).shape)
    jit_compile = keras.backend.backend() == "jax"  # there, operation by operation is slower
    model.compile(keras.optimizers.SGD(10.0), "mse", jit_compile=jit_compile)
    model.train_on_batch(arrays, target)
    for weight, old in zip(layer.trainable_weights, before, strict=True):
        moved = np.abs(numpy(weight.value) - old).max()
        assert moved > 1e-7 or weight.path.endswith(NO_GRADIENT), weight.path
        assert np.isfinite(numpy(weight.value)).all(), weight.path


@each_layer
@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_lower_precision_answers_in_its_dtype_near_float32(case, policy):
    layer = make(case)
    inputs = inputs_of(case)
    layer.build(*case.shapes)
    randomize(layer)
    expected = answer(layer, *inputs)
    low = make(case, dtype=policy)
    low.build(*case.shapes)
    randomize(low)
    outputs = answer(low, *inputs)
    assert outputs.dtype == keras.DTypePolicy(policy).compute_dtype
    outputs = outputs.astype("float32")
    bound = 0.02 if "bfloat16" in policy else 0.004
    assert np.abs(outputs - expected).max() <= bound * max(1.0, np.abs(expected).max()) * 2


@each_image_case
def test_channels_first_is_channels_last(case):
    last, first = make(case), make(case, data_format="channels_first")
    (image,) = inputs_of(case)
    last.build(image.shape)
    randomize(last)
    transposed = np.transpose(image, (0, 3, 1, 2))
    first.build(transposed.shape)
    first.set_weights(last.get_weights())
    outputs = answer(first, transposed)
    assert outputs.shape == tuple(first.compute_output_shape(transposed.shape))
    np.testing.assert_allclose(
        np.transpose(outputs, (0, 2, 3, 1)), answer(last, image), atol=2e-5, rtol=1e-5
    )


@each_layer
@pytest.mark.parametrize("batch", [0, 1])
def test_any_batch_size(case, batch):
    layer = make(case)
    outputs = answer(layer, *inputs_of(case, batch=batch))
    assert outputs.shape == tuple(
        layer.compute_output_shape(*[(batch, *shape[1:]) for shape in case.shapes])
    )


# PyTorch's compiler looks into Keras' function of two dtypes, past its cache
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.parametrize("jit_compile", [True, False], ids=["jit", "no-jit"])
@pytest.mark.parametrize("case", [case for case in FIRST_CASES if case in IMAGE_CASES], ids=str)
def test_one_model_serves_several_sizes(case, jit_compile, monkeypatch):
    if jit_compile and keras.backend.backend() == "torch":
        import torch

        # The captured program runs as it is: to generate code for it takes a C++ compiler.
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    inputs = keras.Input((None, None, case.shapes[0][-1]))
    layer = make(case)
    model = keras.Model(inputs, layer(inputs))
    model.compile(jit_compile=jit_compile)
    randomize(layer)
    for size in ((7, 5), (18, 4), (3, 21)):
        image = np.random.default_rng(0).normal(size=(2, *size, case.shapes[0][-1]))
        image = image.astype("float32")
        outputs = model.predict_on_batch(image)
        np.testing.assert_allclose(outputs, answer(layer, image), atol=1e-4, rtol=1e-4)


UNSEEN = {
    "flash_attention": "test_multi_head_attention.py",
    "data_format": "channels_first above",
    "padding_token": "test_transformer.py",
}


def fingerprint(case, without=()):
    """Everything that an argument may change: answers, losses, weights, constrained weights."""
    keras.utils.set_random_seed(7)
    layer = make(case, without)
    inputs = inputs_of(case)
    arguments = {}
    if "training" in inspect.signature(layer.call).parameters:
        arguments["training"] = True
    traces = [answer(layer, *inputs), answer(layer, *inputs, **arguments)]
    randomize(layer)
    traces.append(answer(layer, *inputs))
    traces += [numpy(loss) for loss in layer.losses]
    for weight in layer.trainable_weights:
        traces.append(numpy(weight.constraint(weight) if weight.constraint else weight.value))
    return traces


@pytest.mark.parametrize("name", PUBLIC_LAYERS)
def test_every_argument_changes_the_answer(name):
    cases = [case for case in CASES if case.layer == name]
    for argument, default in signature_of(PUBLIC_LAYERS[name]).items():
        if default is inspect.Parameter.empty or argument in UNSEEN:
            continue
        changed = [case for case in cases if case.arguments.get(argument, default) != default]
        assert changed, f"no case changes {argument}"
        with_it, without_it = fingerprint(changed[0]), fingerprint(changed[0], (argument,))
        same = len(with_it) == len(without_it) and all(
            a.shape == b.shape and np.allclose(a, b, atol=1e-6)
            for a, b in zip(with_it, without_it, strict=True)
        )
        assert not same, f"{argument} changes nothing"


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.arguments.get("identity_start")], ids=str
)
@pytest.mark.parametrize("training", [False, True])
def test_identity_start_returns_the_input_exactly(case, training):
    (image,) = inputs_of(case)
    np.testing.assert_array_equal(answer(make(case), image, training=training), image)
