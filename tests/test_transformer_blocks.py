"""The Transformer's layers against the oracle; steps with a cache; masks."""

import keras
import numpy as np
import pytest
from building import answer, numpy
from reference import REFERENCES
from small_transformer import mask_of, tokens
from test_gradients import assert_gradients
from test_reference import assert_close, build, sample

from keras_visattn import layers

BLOCK = {"num_heads": 2, "intermediate_dim": 10}


@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_encoder_block_equals_reference(normalize_first, masked):
    x = sample(2, 5, 6)
    settings = {**BLOCK, "normalize_first": normalize_first}
    call = {"mask": mask_of(2, 5)} if masked else {}
    layer, weights = build("TransformerEncoderBlock", settings, x.shape)
    expected, scores = REFERENCES["TransformerEncoderBlock"](x, weights, **settings, **call)
    found, found_scores = answer(layer, x, return_attention_scores=True, **call)
    assert_close(found, expected)
    assert_close(found_scores, scores)
    assert_close(answer(layer, x, **call), expected)


@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_decoder_block_equals_reference(normalize_first, masked):
    inputs = [sample(2, 5, 6), sample(2, 7, 4, seed=2)]
    settings = {**BLOCK, "normalize_first": normalize_first}
    masks = {"inputs_mask": mask_of(2, 5), "memory_mask": mask_of(2, 7)} if masked else {}
    layer, weights = build("TransformerDecoderBlock", settings, *(x.shape for x in inputs))
    expected, scores = REFERENCES["TransformerDecoderBlock"](inputs, weights, **settings, **masks)
    found, found_scores = answer(layer, *inputs, return_attention_scores=True, **masks)
    assert_close(found, expected)
    assert sorted(found_scores) == sorted(scores)
    for name, shares in scores.items():
        assert_close(found_scores[name], shares)
    assert_close(answer(layer, *inputs, **masks), expected)


def test_token_embedding_equals_reference():
    places, vectors = tokens(2, 5), sample(2, 5, 6)
    settings = {"input_dim": 13, "output_dim": 6}
    layer, weights = build("TokenEmbedding", settings, places.shape)
    reference = REFERENCES["TokenEmbedding"]
    assert_close(answer(layer, places), reference(places, weights, **settings)[0])
    expected, _ = reference(vectors, weights, **settings, reverse=True)
    assert_close(answer(layer, vectors, reverse=True), expected)


def test_gradients_of_blocks():
    x, memory = sample(1, 3, 4), sample(1, 2, 6, seed=2)
    assert_gradients("TransformerEncoderBlock", BLOCK, [x])
    assert_gradients("TransformerDecoderBlock", BLOCK, [x, memory], joined=True)


@pytest.mark.parametrize("widths", [[1] * 5, [3, 2], [5]], ids=str)
def test_cached_steps_give_what_the_whole_gives(widths):
    x, memory = sample(2, 5, 6), sample(2, 7, 4, seed=2)
    layer, _ = build("TransformerDecoderBlock", BLOCK, x.shape, memory.shape)
    mask = mask_of(2, 7)
    expected, expected_scores = numpy(
        layer(x, memory, memory_mask=mask, return_attention_scores=True)
    )
    cache, parts, place = layer.start_cache(keras.ops.convert_to_tensor(memory), 8), [], 0
    for width in widths:
        part, scores, cache = layer(
            x[:, place : place + width],
            memory_mask=mask,
            cache=cache,
            position=place,
            return_attention_scores=True,
        )
        parts.append(numpy(part))
        place += width
    assert_close(np.concatenate(parts, axis=1), expected)
    assert_close(numpy(scores["self"])[:, :, -1, :5], expected_scores["self"][:, :, -1])
    assert (numpy(scores["self"])[..., 5:] == 0).all()


def test_shape_of_a_cached_step_is_declared():
    layer, _ = build("TransformerDecoderBlock", BLOCK, (2, 5, 6), (2, 7, 4))
    cache = layer.start_cache(keras.ops.ones((2, 7, 4)), 8)
    call = {"cache": cache, "position": 3, "return_attention_scores": True}
    found = layer(keras.ops.ones((2, 1, 6)), **call)
    symbolic = keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), cache)
    declared = layer.compute_output_spec(
        keras.KerasTensor((2, 1, 6)), **{**call, "cache": symbolic}
    )
    shapes = [[tuple(x.shape) for x in keras.tree.flatten(tree)] for tree in (found, declared)]
    assert shapes[0] == shapes[1]


def test_mask_of_an_embedding_counts_in_the_blocks():
    places = tokens(2, 5)
    places[1, 3:] = 0
    embedding = layers.TokenEmbedding(13, 6, padding_token=0)
    encoder, decoder = (
        layers.TransformerEncoderBlock(**BLOCK),
        layers.TransformerDecoderBlock(**BLOCK),
    )
    x = embedding(places)
    explicit, hidden = keras.ops.convert_to_tensor(numpy(x)), places != 0
    memory = encoder(x)
    expected = encoder(explicit, mask=hidden)
    assert_close(numpy(memory), numpy(expected))
    plain = keras.ops.convert_to_tensor(numpy(memory))
    with_masks = decoder(explicit, plain, inputs_mask=hidden, memory_mask=hidden)
    assert_close(numpy(decoder(x, memory)), numpy(with_masks))
    assert np.abs(numpy(decoder(explicit, plain)) - numpy(with_masks)).max() > 1e-4


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("TransformerEncoderBlock", {"num_heads": 0, "intermediate_dim": 8}),
        ("TransformerEncoderBlock", {"num_heads": 2, "intermediate_dim": 8.5}),
        ("TransformerDecoderBlock", {"num_heads": 2, "intermediate_dim": 8, "dropout": 2}),
        ("TokenEmbedding", {"input_dim": 0, "output_dim": 4}),
        ("TokenEmbedding", {"input_dim": 5, "output_dim": 4, "padding_token": 5}),
    ],
)
def test_bad_argument(name, arguments):
    with pytest.raises(ValueError, match=r"must .*Received: "):
        getattr(layers, name)(**arguments)


def test_bad_inputs():
    encoder, decoder = (
        layers.TransformerEncoderBlock(**BLOCK),
        layers.TransformerDecoderBlock(**BLOCK),
    )
    x, memory = sample(2, 5, 6), sample(2, 7, 4)
    for call in (
        lambda: encoder.build((2, 5, 7)),
        lambda: encoder.build((2, 5, 6, 4)),
        lambda: encoder.build((2, 5, None)),
        lambda: decoder.build((2, 5, 6), (3, 7, 4)),
        lambda: decoder.build((2, 5, 6)),
        lambda: encoder(x, mask=mask_of(2, 4)),
        lambda: decoder(x, memory, memory_mask=mask_of(2, 6)),
        lambda: decoder(x),
        lambda: decoder(
            x, cache=decoder.start_cache(keras.ops.convert_to_tensor(memory), 4), position=0
        ),
        lambda: layers.TokenEmbedding(5, 4)(sample(2, 3, 4)),
        lambda: layers.TokenEmbedding(5, 4)(sample(2, 3, 6), reverse=True),
    ):
        with pytest.raises(ValueError, match=r"must .*Received: "):
            call()
