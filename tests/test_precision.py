"""Half precision: softmax in float32, large logits, gradients; beside a reference in float64."""

import keras
import numpy as np
import pytest
from building import inputs_of, make, randomize
from cases import FIRST_CASES
from gradients import gradients

from keras_visattn import ops

# Of the largest value. The logits are computed in float32, so at 1e4 their error is 1e-3.
BOUNDS = {"float32": 2e-3, "float16": 4e-3, "bfloat16": 2e-2}
CASES = {case.layer: case for case in FIRST_CASES}


def reference(query, key, value):
    """The formula in float64: the averages, and their gradient by the values."""
    logits = np.einsum("bntd,bnsd->bnts", *(x.astype("float64") for x in (query, key)))
    logits *= query.shape[-1] ** -0.5
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights @ value.astype("float64"), logits


class Attend(keras.layers.Layer):
    def __init__(self, implementation, **kwargs):
        super().__init__(**kwargs)
        self.implementation = implementation

    def call(self, query, key, value):
        outputs = ops.attention(query, key, value, implementation=self.implementation)
        return keras.ops.cast(outputs, "float32")


def tensors(dtype, scale):
    """Query, key and value that the dtype holds exactly, with logits of about a scale."""
    draw = np.random.default_rng(0)
    arrays = [draw.normal(size=(2, 2, 5, 4)) for _ in range(3)]
    arrays[0] *= scale**0.5
    arrays[1] *= scale**0.5
    rounded = (keras.ops.cast(keras.ops.convert_to_tensor(x, "float32"), dtype) for x in arrays)
    return [keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")) for x in rounded]


@pytest.mark.parametrize("implementation", [None, "core"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_large_logits_are_near_float64_and_differentiable(dtype, scale, implementation):
    arrays = tensors(dtype, scale)
    expected, logits = reference(*arrays)
    assert scale / 4 < np.abs(logits).max() < scale * 16
    layer = Attend(implementation, dtype=dtype)
    outputs = keras.ops.convert_to_numpy(layer(*(keras.ops.cast(x, dtype) for x in arrays)))
    np.testing.assert_allclose(outputs, expected, atol=BOUNDS[dtype] * np.abs(expected).max())
    found, _ = gradients(layer, arrays, np.ones_like(outputs))
    assert all(np.isfinite(x).all() for x in found)
    # Each query's weights add up to one, so the values' gradients add up to the queries.
    np.testing.assert_allclose(found[2].sum(axis=2), 5.0, rtol=BOUNDS[dtype] * 5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "name", ["LocalSelfAttention2D", "AugmentedConv2D", "MultiHeadAttention", "CBAM"]
)
def test_gradients_of_mixed_precision_are_near_float32(name, policy):
    case = CASES[name]
    found = {}
    for dtype in ("float32", policy):
        layer = make(case, dtype=dtype)
        layer.build(*case.shapes)
        randomize(layer)
        shape = layer.compute_output_shape(*case.shapes)
        factors = np.random.default_rng(3).normal(size=shape).astype("float32")
        if (keras.backend.backend(), name, dtype) == ("torch", "CBAM", "mixed_float16"):
            with pytest.raises(RuntimeError, match="grad_weight must be contiguous"):
                gradients(layer, inputs_of(case), factors)
            return  # PyTorch's convolution to one filter, on the CPU
        found[dtype] = gradients(layer, inputs_of(case), factors)[1]
    bound = 0.1 if "bfloat16" in policy else 0.02
    largest = max(np.abs(high).max() for high in found["float32"])
    for low, high in zip(found[policy], found["float32"], strict=True):
        assert low.dtype == high.dtype and np.isfinite(low).all()
        assert np.abs(low - high).max() <= bound * largest
