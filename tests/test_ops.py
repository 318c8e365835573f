"""What the ops promise beyond the layers: precision, and the refusals of an implementation."""

import keras
import numpy as np
import pytest
from building import numpy

from keras_visattn import ops


def softmax_average(query, key, value):
    logits = np.einsum("bntd,bnsd->bnts", query, key)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.einsum("bnts,bnse->bnte", weights / weights.sum(axis=-1, keepdims=True), value)


@pytest.mark.parametrize("implementation", [None, "core"])
@pytest.mark.parametrize(("dtype", "rounding"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_half_precision_rounds_no_logit(dtype, rounding, implementation):
    draw = np.random.default_rng(0)
    tensors = [
        keras.ops.cast(draw.normal(size=(1, 2, 300, 8), scale=scale), dtype) for scale in (3, 3, 1)
    ]
    arrays = [numpy(keras.ops.cast(x, "float32")).astype("float64") for x in tensors]
    found = ops.attention(*tensors, scale=1.0, implementation=implementation)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    found = numpy(keras.ops.cast(found, "float32"))
    np.testing.assert_allclose(found, softmax_average(*arrays), rtol=rounding, atol=2 * rounding)
