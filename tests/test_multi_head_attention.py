"""`MultiHeadAttention` against Keras' own, and without that layer's defects."""

import keras
import numpy as np
import pytest
from building import numpy

from keras_visattn.layers import MultiHeadAttention


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


SETTINGS = [
    ({}, (2, 5, 8), (2, 7, 6)),
    ({"value_dim": 3, "use_bias": False}, (2, 5, 8), (2, 7, 6)),
    ({"output_shape": 5}, (2, 5, 8), (2, 7, 6)),
    ({"attention_axes": (2,)}, (2, 3, 5, 8), (2, 3, 4, 6)),
    ({}, (2, 3, 5, 8), (2, 3, 4, 6)),
    ({"use_gate": True, "sliding_window": 2}, (2, 5, 8), (2, 5, 8)),
]


@pytest.mark.parametrize(("settings", "query", "value"), SETTINGS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_exchanges_weights_with_keras(settings, query, value, causal):
    if causal and len(query) == 4:
        return  # Keras' layer masks the first axis alone
    query, value = draw(*query), draw(*value, seed=1)
    theirs = keras.layers.MultiHeadAttention(2, 4, **settings)
    ours = MultiHeadAttention(2, 4, **settings)
    call = {"use_causal_mask": causal, "return_attention_scores": True}
    theirs(query, value, **call), ours(query, value, **call)
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]
    ours.set_weights([draw(*w.shape, seed=i) for i, w in enumerate(ours.weights)])
    theirs.set_weights(ours.get_weights())
    for mine, other in zip(ours(query, value, **call), theirs(query, value, **call), strict=True):
        np.testing.assert_allclose(numpy(mine), numpy(other), atol=1e-5)


@pytest.mark.parametrize("axes", [(2, 7), (2, 7, 5)], ids=["sequence", "map"])
def test_symbolic_scores_have_the_true_shape(axes):
    query, value = (2, *axes[1:], 8), (2, *[n - 1 for n in axes[1:]], 8)
    layer = MultiHeadAttention(2, 4)
    symbolic = layer(
        keras.Input(batch_shape=query), keras.Input(batch_shape=value), return_attention_scores=True
    )
    eager = layer(draw(*query), draw(*value), return_attention_scores=True)
    assert tuple(symbolic[1].shape) == tuple(eager[1].shape)


def test_fully_masked_query_is_finite_and_the_same_with_and_without_scores():
    query, value = draw(2, 3, 8), draw(2, 5, 8)
    mask = np.ones((2, 3, 5), bool)
    mask[0, 1] = False
    layer = MultiHeadAttention(2, 4)
    alone = numpy(layer(query, value, attention_mask=mask))
    outputs, scores = numpy(layer(query, value, attention_mask=mask, return_attention_scores=True))
    np.testing.assert_allclose(alone, outputs, atol=1e-6)
    np.testing.assert_array_equal(scores[0, :, 1], 0)
    np.testing.assert_allclose(outputs[0, 1], 0, atol=1e-6)  # the output's bias is zero


def test_flash_attention_is_kept():
    for value in (None, False, True):
        layer = MultiHeadAttention(2, 4, flash_attention=value)
        assert layer.get_config()["flash_attention"] is value


def test_flash_attention_refuses_scores():
    layer = MultiHeadAttention(2, 4, flash_attention=True)
    with pytest.raises(ValueError, match=r"Received: return_scores=True"):
        layer(draw(1, 3, 8), draw(1, 3, 8), return_attention_scores=True)


def test_query_mask_counts():
    query = draw(2, 3, 8)
    mask = np.array([[True, False, True], [True, True, True]])
    layer = MultiHeadAttention(2, 4)
    _, scores = numpy(layer(query, query, query_mask=mask, return_attention_scores=True))
    np.testing.assert_array_equal(scores[0, :, 1], 0)
    np.testing.assert_allclose(scores[0, :, 0].sum(-1), 1, atol=1e-5)


def test_masks_of_maps_and_heads():
    query = draw(2, 2, 3, 8)
    mask = np.random.default_rng(3).uniform(size=(2, 2, 2, 3, 2, 3)) > 0.4  # a mask a head
    key_mask = np.ones((2, 2, 3), bool)
    key_mask[1, 0, 2] = False
    layer = MultiHeadAttention(2, 4)
    _, scores = numpy(
        layer(query, query, attention_mask=mask, value_mask=key_mask, return_attention_scores=True)
    )
    assert (scores[~mask] == 0).all()
    assert (scores[1, ..., 0, 2] == 0).all()


def test_implicit_mask_of_an_embedding_counts():
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    inputs = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(5, 8, mask_zero=True)(inputs)
    _, scores = MultiHeadAttention(2, 4)(x, x, return_attention_scores=True)
    scores = keras.Model(inputs, scores).predict_on_batch(tokens)
    assert (scores[1, :, :, 1:] == 0).all()


def test_dropout_acts_in_training_alone():
    query = draw(2, 3, 8)
    layer = MultiHeadAttention(2, 4, dropout=0.5)
    np.testing.assert_array_equal(numpy(layer(query, query)), numpy(layer(query, query)))
    trained = numpy(layer(query, query, training=True))
    assert np.abs(trained - numpy(layer(query, query))).max() > 1e-3
