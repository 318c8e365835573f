"""Every layer against the oracle of NumPy loops, and the papers' own claims."""

import numpy as np
import pytest
from building import answer, numpy
from reference import REFERENCES

from keras_visattn import layers


def randomize(layer, seed=0, scale=0.4):
    """Gives a built layer random weights, and returns them by their path in the layer."""
    generator = np.random.default_rng(seed)
    weights = {}
    for variable in layer.weights:
        value = generator.normal(size=variable.shape) * scale
        if variable.path.endswith("moving_variance"):
            value = 0.5 + np.abs(value)
        variable.assign(value.astype("float32"))
        path = variable.path.split("/", 1)[1]
        assert path not in weights
        weights[path] = value.astype("float32").astype("float64")
    return weights


def build(name, settings, *shapes):
    """A layer that `settings` make, with the sublayers they name as (class, settings)."""
    if "position_embedding" in settings:
        embedding = layers.RelativePositionEmbedding2D(**settings["position_embedding"])
        settings = {**settings, "position_embedding": embedding}
    layer = getattr(layers, name)(**settings)
    layer.build(*shapes)
    return layer, randomize(layer)


def sample(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def assert_close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=1.0)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


AUGMENTED = {"filters": 8, "kernel_size": 3, "total_key_dim": 6, "total_value_dim": 4}
AUGMENTED["num_heads"] = 2
LOCAL = {"filters": 8, "kernel_size": 3, "num_heads": 2}
STEM = {"filters": 8, "num_heads": 2, "num_mixtures": 3}

# name, size of the map, settings
CASES = [
    ("AugmentedConv2D", (5, 4), {}),
    ("AugmentedConv2D", (5, 4), {"use_bias": True, "position": None}),
    ("AugmentedConv2D", (5, 4), {"position": "sinusoidal"}),
    ("AugmentedConv2D", (5, 4), {"position": "coordinates", "use_bias": True}),
    ("AugmentedConv2D", (7, 6), {"strides": 2}),
    ("AugmentedConv2D", (8, 5), {"strides": 3, "position": "coordinates"}),
    ("AugmentedConv2D", (7, 6), {"padding": "valid"}),
    ("AugmentedConv2D", (8, 7), {"padding": "valid", "strides": 2, "kernel_size": (2, 4)}),
    ("AugmentedConv2D", (7, 8), {"dilation_rate": 2}),
    ("AugmentedConv2D", (7, 9), {"dilation_rate": (1, 3), "padding": "valid"}),
    ("AugmentedConv2D", (5, 4), {"kernel_size": (1, 5)}),
    ("AugmentedConv2D", (2, 3), {"kernel_size": 7}),
    ("AugmentedConv2D", (7, 6), {"attention_pool": 2}),
    ("AugmentedConv2D", (9, 8), {"attention_pool": 3, "strides": 2, "use_bias": True}),
    ("AugmentedConv2D", (8, 7), {"attention_pool": 2, "padding": "valid"}),
    ("AugmentedConv2D", (3, 4), {"max_height": 5, "max_width": 6}),
    ("AugmentedConv2D", (5, 6), {"max_height": 3, "max_width": 2}),
    ("AugmentedConv2D", (4, 5), {"total_value_dim": 8, "strides": 2}),
    ("AugmentedConv2D", (4, 3), {"total_key_dim": None, "min_key_dim": 3, "num_heads": 4}),
    ("LocalSelfAttention2D", (5, 4), {}),
    ("LocalSelfAttention2D", (5, 4), {"position": None, "use_bias": True}),
    ("LocalSelfAttention2D", (5, 4), {"position": "absolute"}),
    ("LocalSelfAttention2D", (5, 4), {"num_heads": 4, "kernel_size": (1, 5)}),
    ("LocalSelfAttention2D", (7, 5), {"strides": 2}),
    ("LocalSelfAttention2D", (8, 7), {"strides": 3, "padding": "valid"}),
    ("LocalSelfAttention2D", (7, 6), {"padding": "valid", "kernel_size": (5, 3)}),
    ("LocalSelfAttention2D", (7, 9), {"dilation_rate": 2}),
    ("LocalSelfAttention2D", (7, 9), {"dilation_rate": (1, 3), "padding": "valid"}),
    ("LocalSelfAttention2D", (3, 2), {"kernel_size": 7}),
    ("LocalSelfAttention2D", (4, 5), {"kernel_size": 5, "dilation_rate": 3}),
    ("LocalSelfAttention2D", (19, 18), {}),
    ("LocalSelfAttention2D", (33, 5), {"kernel_size": (5, 3), "strides": 2}),
    ("LocalSelfAttention2D", (5, 33), {"kernel_size": (3, 7), "dilation_rate": (1, 2)}),
    ("LocalSelfAttention2D", (22, 19), {"padding": "valid", "dilation_rate": 2}),
    ("LocalSelfAttention2D", (18, 17), {"position": "absolute", "kernel_size": 5}),
    ("LocalAttentionStem2D", (8, 12), {}),
    ("LocalAttentionStem2D", (9, 7), {"use_bias": True}),
    ("LocalAttentionStem2D", (7, 9), {"kernel_size": (2, 3), "pool_size": 3}),
    ("LocalAttentionStem2D", (2, 3), {"num_heads": 4, "pool_size": 1}),
    ("LocalAttentionStem2D", (9, 8), {"kernel_size": 3, "pool_size": 2, "num_mixtures": 1}),
    ("SinusoidalPositionEncoding", (5, 4), {}),
    ("SinusoidalPositionEncoding", (3, 7), {"max_wavelength": 50.0}),
    ("CoordinateChannels2D", (5, 4), {}),
    ("CoordinateChannels2D", (1, 6), {"with_radius": True}),
    ("ChannelAttention", (5, 4), {"reduction_ratio": 2}),
    ("ChannelAttention", (5, 4), {"pooling": ("max", "lp", "lse"), "use_bias": False}),
    ("ChannelAttention", (5, 4), {"identity_start": True}),
    ("SpatialAttention", (5, 4), {}),
    ("SpatialAttention", (5, 6), {"kernel_size": (3, 1), "use_bias": True}),
    ("SpatialAttention", (5, 6), {"use_batch_norm": False, "identity_start": True}),
    ("CBAM", (5, 4), {}),
    ("CBAM", (5, 4), {"order": "spatial_first", "kernel_size": 3}),
    ("CBAM", (5, 4), {"order": "parallel", "use_batch_norm": False, "use_bias": False}),
    ("CBAM", (5, 4), {"channel": False, "identity_start": True}),
    ("CBAM", (5, 4), {"spatial": False, "pooling": ("lse", "avg")}),
    ("CBAM", (5, 4), {"identity_start": True, "reduction_ratio": 3}),
    ("SqueezeExcite", (5, 4), {"reduction_ratio": 2}),
    ("SqueezeExcite", (5, 4), {"use_bias": False, "identity_start": True}),
    ("GatherExcite", (5, 4), {}),
    ("GatherExcite", (5, 7), {"extent": 3}),
    ("GatherExcite", (4, 9), {"extent": 4, "reduction_ratio": 2}),
    ("GatherExcite", (3, 2), {"extent": 5}),
    ("GatherExcite", (5, 4), {"parametric": True}),
    ("GatherExcite", (7, 6), {"parametric": True, "extent": 2, "identity_start": True}),
    ("GatherExcite", (9, 6), {"parametric": True, "extent": 4, "reduction_ratio": 2}),
    ("BAM", (9, 6), {}),
    ("BAM", (5, 9), {"reduction_ratio": 2, "dilation_rate": (1, 2), "identity_start": True}),
    ("GALA", (5, 4), {"reduction_ratio": 2}),
    ("GALA", (3, 6), {"identity_start": True}),
]
DEFAULTS = {
    "AugmentedConv2D": AUGMENTED,
    "LocalSelfAttention2D": LOCAL,
    "LocalAttentionStem2D": STEM,
}
SCORELESS = ("SinusoidalPositionEncoding", "CoordinateChannels2D")


def label(value):
    if isinstance(value, dict):
        return "-".join(f"{k}={v}" for k, v in value.items()).replace(" ", "") or "default"
    return "x".join(map(str, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("name", "size", "settings"), CASES, ids=label)
def test_image_layer_equals_reference(name, size, settings):
    settings = {**DEFAULTS.get(name, {}), **settings}
    x = sample(2, *size, 6)
    reference = {k: v for k, v in settings.items() if v is not None or k == "position"}
    layer, weights = build(name, settings, x.shape)
    extra = {} if name in SCORELESS else {"return_attention_scores": True}
    expected, scores = REFERENCES[name](x.astype("float64"), weights, **reference)
    found = answer(layer, x, **extra)
    if extra:
        found, found_scores = found
        if isinstance(scores, dict):
            assert sorted(scores) == sorted(found_scores)
            for key, gate in scores.items():
                assert_close(found_scores[key], gate)
        else:
            assert_close(found_scores, scores)
        assert_close(answer(layer, x), expected)
    assert_close(found, expected)

    other, _ = build(name, {**settings, "data_format": "channels_first"}, (2, 6, *size))
    other.set_weights(layer.get_weights())
    flipped = answer(other, x.transpose(0, 3, 1, 2))
    assert_close(flipped, expected.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("settings", [{}, {"max_wavelength": 50.0}], ids=label)
@pytest.mark.parametrize("channels", [4, 5])
def test_sinusoidal_encoding_of_sequence(channels, settings):
    x = sample(2, 7, channels)
    layer = layers.SinusoidalPositionEncoding(**settings)
    assert_close(answer(layer, x), REFERENCES["SinusoidalPositionEncoding"](x, {}, **settings)[0])


@pytest.mark.parametrize("extrapolation", ["interpolate", "clip"])
@pytest.mark.parametrize("tables", [(None, None), (2, 3), (6, 7), (1, 9), (9, 2)])
def test_relative_position_embedding(tables, extrapolation):
    queries = sample(2, 5, 4, 3, 6)
    settings = {"max_height": tables[0], "max_width": tables[1], "extrapolation": extrapolation}
    layer, weights = build("RelativePositionEmbedding2D", settings, queries.shape)
    expected, _ = REFERENCES["RelativePositionEmbedding2D"](queries, weights, **settings)
    assert_close(answer(layer, queries), expected)


HEADS = {"num_heads": 2, "key_dim": 3, "value_dim": 5}
RELATIVE = {"position_embedding": {}}
SMALL = {"position_embedding": {"max_height": 3, "max_width": 2}}
MULTI_HEAD = [
    ([(4, 6), (4, 6)], {}, {}),
    ([(4, 6), (7, 5)], {"use_bias": False, "output_shape": 9}, {}),
    ([(4, 6), (7, 5), (7, 3)], {"use_gate": True}, {}),
    ([(5, 6), (5, 6)], {"sliding_window": 2}, {}),
    ([(5, 6), (5, 6)], {}, {"use_causal_mask": True}),
    ([(4, 6), (3, 6)], {}, {"attention_mask": True}),
    ([(3, 4, 6), (2, 5, 6)], {"use_gate": True}, {}),
    ([(3, 4, 6), (3, 5, 6)], {"attention_axes": 2}, {}),
    ([(3, 4, 6), (3, 5, 6)], {"attention_axes": 2, "output_shape": (2, 3)}, {}),
    ([(3, 4, 6), (3, 4, 6)], RELATIVE, {}),
    ([(5, 4, 6), (5, 4, 6)], SMALL, {}),
    ([(2, 4, 6), (2, 4, 6)], {**SMALL, "use_bias": False}, {}),
]


@pytest.mark.parametrize(("shapes", "settings", "call"), MULTI_HEAD)
def test_multi_head_attention(shapes, settings, call):
    inputs = [sample(2, *shape, seed=i) for i, shape in enumerate(shapes)]
    if "attention_mask" in call:
        mask = np.random.default_rng(3).random((2, shapes[0][0], shapes[1][0])) < 0.5
        mask[0, 1] = False
        call = {"attention_mask": mask}
    settings = {**HEADS, **settings}
    layer, weights = build("MultiHeadAttention", settings, *(x.shape for x in inputs))
    expected, scores = REFERENCES["MultiHeadAttention"](inputs, weights, **settings, **call)
    found, found_scores = answer(layer, *inputs, return_attention_scores=True, **call)
    assert_close(found, expected)
    assert_close(found_scores.reshape(-1), scores.reshape(-1))
    assert_close(answer(layer, *inputs, **call), expected)


def constant_values(layer, values):
    """Makes the last `values` channels of the layer's projection constant ones."""
    randomize(layer)
    kernel, bias = numpy(layer.projection.kernel.value), numpy(layer.projection.bias.value)
    kernel[:, -values:], bias[-values:] = 0, 1
    layer.projection.kernel.assign(kernel)
    layer.projection.bias.assign(bias)


@pytest.mark.parametrize("position", ["relative", "absolute", None])
@pytest.mark.parametrize(("kernel_size", "dilation_rate"), [(3, 1), (7, 1), (5, 3), ((1, 9), 2)])
def test_constant_values_stay_constant_everywhere(kernel_size, dilation_rate, position):
    settings = {**LOCAL, "kernel_size": kernel_size, "dilation_rate": dilation_rate}
    layer, _ = build(
        "LocalSelfAttention2D", {**settings, "position": position, "use_bias": True}, (1, 4, 3, 6)
    )
    constant_values(layer, 8)
    outputs, scores = answer(layer, sample(1, 4, 3, 6), return_attention_scores=True)
    assert_close(outputs, np.ones((1, 4, 3, 8)))
    assert_close(scores.sum(axis=-1), np.ones((1, 4, 3, 2)))


def test_relative_index_is_key_minus_query():
    layer, _ = build("RelativePositionEmbedding2D", {}, (1, 4, 3, 1, 1))
    layer.row_table.assign(np.arange(7.0)[:, None] * 10)
    layer.column_table.assign(np.arange(5.0)[:, None])
    logits = answer(layer, np.ones((1, 4, 3, 1, 1), "float32")).reshape(4, 3, 4, 3)
    for y, x, b, a in np.ndindex(logits.shape):
        assert logits[y, x, b, a] == 10 * (b - y + 3) + (a - x + 2)


def test_heads_are_merged_after_the_transpose():
    settings = {**AUGMENTED, "position": None, "total_value_dim": 8, "use_bias": True}
    layer, _ = build("AugmentedConv2D", settings, (1, 3, 4, 6))
    constant_values(layer, 8)
    bias = numpy(layer.projection.bias.value)
    bias[-8:] = np.arange(8.0)
    layer.projection.bias.assign(bias)
    layer.combination.kernel.assign(np.eye(8))
    layer.combination.bias.assign(np.zeros(8))
    assert_close(answer(layer, sample(1, 3, 4, 6)), np.broadcast_to(np.arange(8.0), (1, 3, 4, 8)))
    assert len(layer.weights) == 4  # no convolution is left


def test_squeeze_excite_is_the_channel_gate_with_averages_alone():
    x = sample(2, 5, 4, 6)
    squeeze, _ = build("SqueezeExcite", {"reduction_ratio": 2}, x.shape)
    settings = {"reduction_ratio": 2, "pooling": ("avg",), "spatial": False}
    whole, _ = build("CBAM", settings, x.shape)
    whole.set_weights(squeeze.get_weights())
    assert_close(answer(whole, x), answer(squeeze, x), 1e-7)
