"""Greedy decoding with a cache against the whole model, called anew for each token."""

import keras
import numpy as np
import pytest
from building import numpy
from small_transformer import END, SMALL, START, small_model, tokens

from keras_visattn import layers, models


def decoded_again_and_again(model, source, max_length, fill=0):
    """The likeliest tokens, from the whole model called anew for each."""
    target = np.full((len(source), 1), START, "int32")
    for _ in range(max_length):
        logits = model.predict_on_batch([source, target])
        target = np.concatenate([target, logits[:, -1:].argmax(-1)], axis=1).astype("int32")
    target = target[:, 1:]
    for row in target:
        ends = np.flatnonzero(row == END)
        row[ends[0] + 1 if len(ends) else max_length :] = fill
    return target


@pytest.fixture(scope="module")
def reversing():
    """A small model that learnt to write sequences of two to four tokens backwards."""
    keras.utils.set_random_seed(1)
    source, target = reversals(4096)
    model = models.Transformer(12, 1, 32, 64, num_heads=2, dropout=0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit([source, target[:, :-1]], target[:, 1:], batch_size=128, epochs=8, verbose=0)
    return model


def reversals(count, seed=0):
    draw = np.random.default_rng(seed)
    source, target = np.zeros((count, 4), "int32"), np.zeros((count, 6), "int32")
    for row, written in zip(source, target, strict=True):
        length = draw.integers(2, 5)
        row[:length] = draw.integers(3, 12, size=length)
        written[: length + 2] = [START, *row[:length][::-1], END]
    return source, target


def test_learns_to_reverse(reversing):
    source, target = reversals(64, seed=1)
    decoder = models.GreedyDecoder(reversing, START, END, 5)
    right = (decoder.predict(source, verbose=0) == target[:, 1:]).all(axis=1)
    assert right.mean() > 0.9


def test_greedy_decoding_gives_what_the_whole_model_gives(reversing, tmp_path):
    source = tokens(8, 6, vocabulary_size=12)  # longer than any it has seen
    source[:4, 3:] = 0
    expected = decoded_again_and_again(reversing, source, 7)
    assert len(np.unique(expected)) > 6
    decoder = models.GreedyDecoder(reversing, START, END, 7)
    np.testing.assert_array_equal(decoder.predict(source, verbose=0), expected)
    shorter = decoder.predict(source[:3, :5], verbose=0)[:, :2]  # another batch and length
    np.testing.assert_array_equal(shorter, decoded_again_and_again(reversing, source[:3, :5], 2))
    reversing.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    again = models.GreedyDecoder(loaded, START, END, 7)
    np.testing.assert_array_equal(again.predict(source, verbose=0), expected)
    decoder.save(tmp_path / "decoder.keras")
    again = keras.saving.load_model(tmp_path / "decoder.keras", safe_mode=True)
    np.testing.assert_array_equal(again.predict(source, verbose=0), expected)


@pytest.mark.parametrize("changes", [{}, {"normalize_first": True}, {"padding_token": None}])
def test_greedy_decoding_of_random_weights(changes):
    model = small_model(seed=2, scale=1.0, **changes)
    source, fill = tokens(8, 6), END if "padding_token" in changes else 0
    expected = decoded_again_and_again(model, source, 5, fill)
    found = models.GreedyDecoder(model, START, END, 5).predict(source, verbose=0)
    np.testing.assert_array_equal(found, expected)


def test_greedy_decoding_stops_when_all_have_ended(monkeypatch):
    model = small_model()
    # Every answer is the end token: it alone has a logit.
    table = np.zeros((13, 16), "float32")
    table[END] = 1
    model.get_layer("embedding").embeddings.assign(table)
    norm = model.get_layer("decoder_norm")
    norm.set_weights([np.zeros(16), np.ones(16)])
    steps = []
    block, call = layers.TransformerDecoderBlock, layers.TransformerDecoderBlock.call

    def counted(self, *args, **kwargs):
        steps.append(kwargs.get("position"))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(block, "call", counted)
    decoder = models.GreedyDecoder(model, START, END, 50)
    targets = numpy(decoder(tokens(2, 6)))
    np.testing.assert_array_equal(targets, [[END] + [0] * 49] * 2)
    # One step, or the steps traced for a compiled loop: fewer than the length by far.
    assert len(steps) <= 2 * SMALL["num_layers"]


def test_bad_greedy_decoder():
    model = models.Transformer(13, **SMALL)
    for arguments in ((model, 13, END, 5), (model, START, -1, 5), (model, START, END, 0)):
        with pytest.raises(ValueError, match=r"must .*Received: "):
            models.GreedyDecoder(*arguments)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"must .*Received: model="):
        models.GreedyDecoder(other, START, END, 5)
