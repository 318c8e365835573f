"""Projections quantize, reload and get adapters; attention recomputes under `RematScope`."""

import json

import keras
import numpy as np
import pytest
import quantized
from building import answer, inputs_of, make, numpy, randomize
from cases import FIRST_CASES

from keras_visattn import projections
from keras_visattn.layers import CBAM, AugmentedConv2D, LocalSelfAttention2D

# Keras warns of each layer that `model.quantize` leaves alone.
pytestmark = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
CASES = {case.layer: case for case in FIRST_CASES}
WITHOUT = {  # layers that hold no projection
    "CoordinateChannels2D",
    "GatherExcite",
    "RelativePositionEmbedding2D",
    "SinusoidalPositionEncoding",
    "SpatialAttention",
    "TokenEmbedding",
}
BOUNDS = {"int8": 0.02, "int4": 0.15, "float8": 0.15}  # of the largest output, random weights
BOUNDS |= {"GPTQ, 8 bits": 0.02, "GPTQ, 4 bits": 0.15, "AWQ": 0.15}


def projections_of(layer):
    layers = layer._flatten_layers(include_self=False)
    return [x for x in layers if isinstance(x, projections.DENSE)]


def modes(layer):
    return {row.path: row.mode for row in projections.report(layer).rows}


@pytest.mark.parametrize("mode", quantized.RELOADED)
@pytest.mark.parametrize("name", CASES)
def test_a_quantized_layer_is_made_again_from_its_config(name, mode):
    case = CASES[name]
    layer = make(case)
    layer.build(*case.shapes)
    if not projections_of(layer):
        assert name in WITHOUT
        return
    for projection in projections_of(layer):
        projection.quantize(mode)
    assert all(modes(layer)[x.path] == mode for x in projections_of(layer))
    config = keras.saving.serialize_keras_object(layer)
    config["config"]["name"] = "another+name"
    again = keras.saving.deserialize_keras_object(config)
    if not again.built:
        again.build(*case.shapes)
    assert list(modes(again).values()) == list(modes(layer).values())
    assert [x.dtype for x in again.weights] == [x.dtype for x in layer.weights]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("CBAM", "int8"), ("GALA", "int8"), ("AugmentedConv2D", "int8")),
        *(("MultiHeadAttention", "int8"), ("TransformerDecoderBlock", "int8")),
        *(("MultiHeadAttention", "AWQ"), ("TransformerDecoderBlock", "GPTQ, 8 bits")),
        *(("LocalSelfAttention2D", mode) for mode in BOUNDS),
    ],
)
def test_a_quantized_model_answers_nearly_the_same_and_reloads(name, mode, tmp_path):
    case = CASES[name]
    inputs, outer = ([keras.Input(shape[1:]) for shape in case.shapes] for _ in range(2))
    layer = make(case)
    model = keras.Model(outer, keras.Model(inputs, layer(*inputs), name="inner")(outer))
    arrays = inputs_of(case)
    before = answer(model, arrays)
    quantized.quantize(model, arrays, mode)
    after = answer(model, arrays)
    assert 0 < np.abs(after - before).max() <= BOUNDS[mode] * np.abs(before).max()
    model.save(tmp_path / "model.keras")
    if mode not in quantized.RELOADED:  # Keras 3.15 leaves the zero points out
        with pytest.raises(ValueError, match=r"expected \d variables, but received"):
            keras.saving.load_model(tmp_path / "model.keras")
        return
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(answer(loaded, arrays), after, atol=1e-6)


def test_calibrate_reaches_what_it_is_told_to_and_leaves_alone_what_keras_would_spoil():
    model = small_model()
    for layer in projections_of(model):
        kernel = numpy(layer.kernel)
        signs = np.ones((len(kernel), 1))
        if layer.path != "cbam/channel/excite":  # whose zero points would not fit into a byte
            signs[1] = -1
        layer.kernel.assign((np.abs(kernel) + 0.01) * signs)
    done = projections.calibrate(model, IMAGES, match=lambda x: x.name != "top", batch_size=3)
    assert [x.path for x in done] == [row.path for row in projections.report(model).quantized]
    assert {x.path for x in done} == {
        *("cbam/channel/squeeze", "local/projection"),
        *("augmented/projection", "augmented/combination"),
    }
    for match, inputs in (
        (None, IMAGES),
        (lambda _: False, IMAGES),
        (lambda x: x.name == "top", []),
    ):
        with pytest.raises(ValueError, match=r"must be some.* Received: model="):
            projections.calibrate(model, inputs, match=match)
    with pytest.raises(ValueError, match=r"`mode` must .*: mode='int8'"):
        projections.calibrate(model, IMAGES, "int8")


@pytest.mark.parametrize("mode", ["GPTQ, 4 bits", "AWQ"])
def test_what_calibrates_sees_the_inputs(mode):
    """The errors lie where inputs like those of the calibration do not go."""
    draw = np.random.default_rng(0)
    mixing = draw.normal(size=(2, 16))
    arrays = (draw.normal(size=(64, 4, 4, 2)) @ mixing).astype("float32")
    errors = []
    for inputs in (arrays, draw.normal(size=arrays.shape).astype("float32")):
        image = keras.Input(arrays.shape[1:])
        x = LocalSelfAttention2D(8, 3, num_heads=2)(image)
        model = keras.Model(image, keras.layers.Dense(8)(x))
        randomize(model)
        before = answer(model, arrays)
        quantized.quantize(model, inputs, mode)
        errors.append(np.abs(answer(model, arrays) - before).mean())
    assert errors[0] < 0.9 * errors[1]


def small_model():
    inputs = keras.Input((6, 5, 4))
    x = keras.layers.Conv2D(8, 1, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = CBAM(reduction_ratio=2, kernel_size=3, name="cbam")(x)
    x = LocalSelfAttention2D(8, 3, num_heads=2, name="local")(x)
    x = AugmentedConv2D(8, 3, num_heads=2, min_key_dim=2, value_ratio=0.5, name="augmented")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="top")(x))


IMAGES = np.random.default_rng(0).normal(size=(4, 6, 5, 4)).astype("float32")
LABELS = np.array([0, 1, 2, 0])
JIT = keras.backend.backend() == "jax"
LOSS = "sparse_categorical_crossentropy"


def test_report_says_what_is_quantized_and_what_was_left_alone():
    model = small_model()
    assert not projections.report(model).quantized
    model.quantize("int8")
    report = projections.report(model)
    quantized = {row.path: row for row in report.quantized}
    assert set(quantized) == {
        *("cbam/channel/squeeze", "cbam/channel/excite", "local/projection", "top"),
        *("augmented/projection", "augmented/combination"),
    }
    left = {row.path: row for row in report.left_alone}
    assert set(left) == {
        *("conv", "norm", "cbam/spatial/convolution", "cbam/spatial/batch_norm"),
        *("local", "augmented/convolution", "augmented/position"),
    }
    assert left["local"].bytes == 4 * 2 * 3 * 2  # two tables of three offsets, half a head of four
    assert quantized["local/projection"].bytes == 8 * 24 + 4 * 24  # and a scale for each column
    assert "6 of 13" in str(report) and "left alone" in str(report)


def test_only_the_adapters_train_and_a_saved_model_has_them(tmp_path):
    model = small_model()
    before = answer(model, IMAGES)
    adapted = projections.enable_lora(model, rank=2)
    assert [layer.path for layer in adapted] == [
        row.path
        for row in projections.report(model).rows
        if row.path.endswith(("squeeze", "excite", "projection", "combination"))
    ]
    np.testing.assert_allclose(answer(model, IMAGES), before, atol=1e-6)
    values = {x.path: numpy(x.value) for x in model.weights}
    model.compile(keras.optimizers.SGD(1.0), LOSS, jit_compile=JIT)
    for _ in range(2):
        model.train_on_batch(IMAGES, LABELS)
    moved = {x.path for x in model.weights if (numpy(x.value) != values[x.path]).any()}
    assert moved and all("/lora_kernel_" in path for path in moved)
    assert {path.rpartition("/")[0] for path in moved} == {layer.path for layer in adapted}
    after = answer(model, IMAGES)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(answer(loaded, IMAGES), after, atol=1e-6)


def test_lora_refuses_what_it_cannot_adapt():
    inputs = keras.Input((6, 5, 4))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs))
    with pytest.raises(ValueError, match=r"projections to adapt. Received: model="):
        projections.enable_lora(model, rank=2)
    with pytest.raises(ValueError, match=r"`rank` must .*: rank=0"):
        projections.enable_lora(small_model(), rank=0)
    model = small_model()
    assert projections.enable_lora(model, 1, lambda layer: layer.name == "top")[0].path == "top"


def test_the_page_holds_the_tables():
    page = quantized.pages.between(quantized.PAGE, quantized.MARKS)
    found = json.loads(quantized.FOUND.read_text())
    assert set(found) == {"tensorflow", "jax", "torch"}
    expected = [*quantized.rows_of_layers(), *quantized.rows_of_changes(found)]
    if keras.backend.backend() == "torch":  # the networks once: they take minutes to make
        expected += quantized.rows_of_networks()
    assert set(expected) <= set(page.splitlines())
    for changes in found.values():
        for row in changes.values():
            assert all(x is None or x < 100 * BOUNDS[mode] for mode, x in row.items())


@pytest.mark.parametrize("mode", ["int8", "GPTQ, 4 bits"])
def test_a_layer_moves_by_as_much_as_was_found(mode):
    found = json.loads(quantized.FOUND.read_text())[keras.backend.backend()]
    change = quantized.change("SqueezeExcite", mode)
    np.testing.assert_allclose(change, found["SqueezeExcite"][mode], rtol=0.1)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="In TensorFlow's graphs, Keras' scope raises where a layer is called with keywords",
)
def test_attention_recomputes_under_a_remat_scope():
    losses = []
    for mode in (None, "full"):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6, 5, 4))
        with keras.RematScope(mode=mode):
            x = LocalSelfAttention2D(8, 3, num_heads=2)(inputs)
            x = AugmentedConv2D(8, 3, num_heads=2, min_key_dim=2, value_ratio=0.5)(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
        randomize(model)
        model.compile(keras.optimizers.SGD(0.1), LOSS, jit_compile=JIT)
        losses.append([model.train_on_batch(IMAGES, LABELS) for _ in range(3)])
    np.testing.assert_allclose(*losses, rtol=1e-4)
