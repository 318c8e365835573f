"""The gradients of every layer against finite differences of the float64 oracle."""

import keras
import numpy as np
import pytest
import saved_gradients
from cases import CASES as ALL_CASES
from gradients import gradients
from reference import REFERENCES
from saved_gradients import example_of, flat, float64, loss_of
from scripts import folder_written_by
from test_reference import AUGMENTED, LOCAL, STEM, build, label, sample

BACKEND = keras.backend.backend()
STEP = 1e-5
COORDINATES = 12

CASES = [
    ("AugmentedConv2D", (4, 3), {**AUGMENTED, "use_bias": True}),
    ("AugmentedConv2D", (5, 4), {**AUGMENTED, "strides": 2, "position": "coordinates"}),
    ("AugmentedConv2D", (5, 4), {**AUGMENTED, "attention_pool": 2}),
    ("AugmentedConv2D", (4, 3), {**AUGMENTED, "max_height": 2, "max_width": 5}),
    ("LocalSelfAttention2D", (4, 3), {**LOCAL, "use_bias": True}),
    ("LocalSelfAttention2D", (5, 3), {**LOCAL, "strides": 2, "kernel_size": 5}),
    ("LocalSelfAttention2D", (5, 4), {**LOCAL, "padding": "valid", "position": "absolute"}),
    ("LocalSelfAttention2D", (17, 3), {**LOCAL, "dilation_rate": 2}),
    ("LocalAttentionStem2D", (5, 4), {**STEM, "pool_size": 2, "use_bias": True}),
    ("SinusoidalPositionEncoding", (3, 2), {}),
    ("CoordinateChannels2D", (3, 2), {}),
    ("ChannelAttention", (4, 3), {"reduction_ratio": 2, "pooling": ("avg", "max", "lp", "lse")}),
    ("SpatialAttention", (4, 3), {"kernel_size": 3, "use_bias": True}),
    ("CBAM", (4, 3), {"reduction_ratio": 2, "kernel_size": 3}),
    ("CBAM", (4, 3), {"reduction_ratio": 2, "kernel_size": 3, "order": "parallel"}),
    ("SqueezeExcite", (4, 3), {"reduction_ratio": 2}),
    ("GatherExcite", (4, 3), {"extent": 2, "reduction_ratio": 2}),
    ("GatherExcite", (5, 3), {"extent": 4, "parametric": True}),
    ("BAM", (5, 3), {"reduction_ratio": 2, "dilation_rate": 2}),
    ("GALA", (4, 3), {"reduction_ratio": 2}),
]
HEADS = {"num_heads": 2, "key_dim": 3, "value_dim": 5}


def assert_gradients(name, settings, inputs, joined=False):
    """Compares at some coordinates; `joined` if the oracle takes one tuple of inputs."""
    layer, weights = build(name, settings, *(x.shape for x in inputs))
    arrays = [x.astype("float64") for x in inputs]
    reference = REFERENCES[name]

    def output():
        return reference(arrays if joined else arrays[0], weights, **settings)[0]

    generator = np.random.default_rng(5)
    factors = generator.normal(size=output().shape).astype("float32")
    found_inputs, found_weights = gradients(layer, inputs, factors)
    paths = [w.path.split("/", 1)[1] for w in layer.trainable_variables]
    groups = [*zip(arrays, found_inputs, strict=True)]
    groups += [(weights[p], found) for p, found in zip(paths, found_weights, strict=True)]
    for array, found in groups:
        assert array.shape == found.shape
        flat = array.reshape(-1)
        chosen = generator.permutation(flat.size)[:COORDINATES]
        expected = []
        for index in chosen:
            kept, sums = flat[index], []
            for step in (STEP, -STEP):
                flat[index] = kept + step
                sums.append(np.sum(output() * factors))
            flat[index] = kept
            expected.append((sums[0] - sums[1]) / (2 * STEP))
        scale = max(np.abs(expected).max(), np.abs(found).max(), 1e-2)
        np.testing.assert_allclose(found.reshape(-1)[chosen], expected, atol=1e-3 * scale)


@pytest.mark.parametrize(("name", "size", "settings"), CASES, ids=label)
def test_gradients_of_image_layer(name, size, settings):
    # Two images: PyTorch cannot differentiate a convolution to one channel for one (on CPU).
    assert_gradients(name, settings, [sample(2, *size, 4)])


@pytest.mark.parametrize("tables", [(None, None), (2, 5)])
def test_gradients_of_relative_position_embedding(tables):
    settings = {"max_height": tables[0], "max_width": tables[1]}
    assert_gradients("RelativePositionEmbedding2D", settings, [sample(1, 3, 2, 2, 4)])


@pytest.mark.parametrize(
    ("shapes", "settings"),
    [
        ([(4, 6), (3, 5), (3, 4)], {"use_gate": True}),
        ([(4, 6), (4, 6)], {"sliding_window": 2, "use_bias": False}),
        ([(2, 3, 4), (2, 3, 4)], {"position_embedding": {}}),
    ],
)
def test_gradients_of_multi_head_attention(shapes, settings):
    inputs = [sample(1, *shape, seed=i) for i, shape in enumerate(shapes)]
    assert_gradients("MultiHeadAttention", {**HEADS, **settings}, inputs, joined=True)


@pytest.fixture(scope="module")
def gradients_of_tensorflow(tmp_path_factory):
    folder = folder_written_by(saved_gradients, "tensorflow", tmp_path_factory)
    return [list(np.load(folder / f"{n}.npz").values()) for n in range(len(ALL_CASES))]


each_case = pytest.mark.parametrize(
    "index", range(len(ALL_CASES)), ids=lambda index: str(ALL_CASES[index])
)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras has float64 on TensorFlow only")
@each_case
def test_gradients_in_float64_are_slopes(index):
    case = ALL_CASES[index]
    with float64():
        layer, inputs, factors = example_of(case)
        found = flat(gradients(layer, inputs, factors))
        slope, expected = slopes(layer, inputs, factors, found, tokens="Token" in case.layer)
    assert {x.dtype.name for x in found} == {"float64"}
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-5)


@each_case
def test_gradients_are_those_in_float64_on_tensorflow(index, gradients_of_tensorflow):
    found = flat(gradients(*example_of(ALL_CASES[index], "float32")))
    for x, exact in zip(found, gradients_of_tensorflow[index], strict=True):
        np.testing.assert_allclose(x, exact, rtol=1e-3, atol=1e-4 * max(1, np.abs(exact).max()))


def slopes(layer, inputs, factors, found, tokens):
    """The loss's slope in a direction of all inputs and weights: by difference, by gradients."""
    draw, weights = np.random.default_rng(6), layer.trainable_variables
    values = [*inputs, *(keras.ops.convert_to_numpy(w.value) for w in weights)]
    directions = [draw.normal(size=x.shape) for x in values]
    if tokens:  # which are whole numbers
        directions[0][:] = 0
    losses = []
    for step in (1e-6, -1e-6):
        moved = [x + step * d for x, d in zip(values, directions, strict=True)]
        for weight, value in zip(weights, moved[len(inputs) :], strict=True):
            weight.assign(value)
        losses.append(loss_of(layer, moved[: len(inputs)], factors))
    expected = sum((g * d).sum() for g, d in zip(found, directions, strict=True))
    return (losses[0] - losses[1]) / 2e-6, expected
