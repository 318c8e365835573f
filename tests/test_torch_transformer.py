"""Attention and the Transformer answer as PyTorch's, with its weights."""

import numpy as np
import pytest
from building import answer, numpy
from reference import REFERENCES
from small_transformer import mask_of, small_model, tokens
from test_reference import sample

from keras_visattn import layers


def array(parameter):
    return parameter.detach().cpu().numpy()


def give_attention(theirs, ours):
    """Copies the weights of `torch.nn.MultiheadAttention`."""
    size = theirs.embed_dim
    heads = size, ours.num_heads, ours.key_dim
    weights = []
    kernels, biases = (np.split(array(x), 3) for x in (theirs.in_proj_weight, theirs.in_proj_bias))
    for kernel, bias in zip(kernels, biases, strict=True):
        weights += [kernel.T.reshape(heads), bias.reshape(heads[1:])]
    weights.append(array(theirs.out_proj.weight).T.reshape(*heads[1:], size))
    ours.set_weights([*weights, array(theirs.out_proj.bias)])


def give_weights(torch_layers, model):
    """Copies the weights of `torch.nn.Transformer`."""

    def give_norm(theirs, ours):
        ours.set_weights([array(theirs.weight), array(theirs.bias)])

    def give_block(theirs, ours, attentions):
        for number, name in enumerate(attentions, 1):
            attention = theirs.multihead_attn if number == 2 else theirs.self_attn
            give_attention(attention, getattr(ours, name))
            give_norm(getattr(theirs, f"norm{number}"), getattr(ours, f"{name}_norm"))
        give_norm(getattr(theirs, f"norm{len(attentions) + 1}"), ours.feed_forward_norm)
        for theirs_dense, dense in ((theirs.linear1, ours.expand), (theirs.linear2, ours.shrink)):
            dense.set_weights([array(theirs_dense.weight).T, array(theirs_dense.bias)])

    attentions = {"encoder": ["attention"], "decoder": ["self_attention", "cross_attention"]}
    for stack, names in attentions.items():
        theirs = getattr(torch_layers, stack)
        for number, block in enumerate(theirs.layers, 1):
            give_block(block, model.get_layer(f"{stack}_{number}"), names)
        give_norm(theirs.norm, model.get_layer(f"{stack}_norm"))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")  # with the norms first
@pytest.mark.parametrize("normalize_first", [False, True])
def test_answers_as_torch_with_its_weights(normalize_first):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    settings = {"batch_first": True, "norm_first": normalize_first, "dropout": 0.0}
    theirs = torch.nn.Transformer(16, 2, 2, 2, 32, **settings)  # in training: no fast path
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model = small_model(normalize_first=normalize_first)
    give_weights(theirs, model)
    source, target = tokens(3, 6), tokens(3, 5, seed=1)
    source[1, 4:], target[2, 3:] = 0, 0
    table = numpy(model.get_layer("embedding").embeddings.value)
    encode = REFERENCES["SinusoidalPositionEncoding"]
    vectors = [
        torch.tensor(encode(4.0 * table[places], {})[0], dtype=torch.float32)
        for places in (source, target)
    ]
    padding = [torch.tensor(places == 0) for places in (source, target)]
    with torch.no_grad():
        outputs = theirs(
            *vectors,
            tgt_mask=torch.triu(torch.ones(5, 5, dtype=torch.bool), diagonal=1),
            src_key_padding_mask=padding[0],
            tgt_key_padding_mask=padding[1],
            memory_key_padding_mask=padding[0],
        )
    expected = outputs.numpy() @ table.T
    found = answer(model, [source, target])
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_attention_answers_as_torch_with_its_weights(cross, masked):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    torch.nn.init.normal_(theirs.in_proj_bias)
    query = sample(2, 5, 16)
    value = sample(2, 7, 16, seed=2) if cross else query
    ours = layers.MultiHeadAttention(2, 8)
    ours.build(query.shape, value.shape)
    give_attention(theirs, ours)
    hidden = ~mask_of(2, value.shape[1]) if masked else None
    pairs = np.random.default_rng(3).random((5, value.shape[1])) < 0.3 if masked else None
    if masked:
        pairs[:, 0] = False
    tensors = [torch.tensor(x) for x in (query, value, value)]
    with torch.no_grad():
        expected, expected_scores = theirs(
            *tensors,
            key_padding_mask=None if hidden is None else torch.tensor(hidden),
            attn_mask=None if pairs is None else torch.tensor(pairs),
            average_attn_weights=False,
        )
    call = {"value_mask": ~hidden, "attention_mask": ~pairs} if masked else {}
    found, scores = answer(ours, query, value, return_attention_scores=True, **call)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(scores, expected_scores.numpy(), atol=1e-5)
    np.testing.assert_allclose(answer(ours, query, value, **call), expected.numpy(), atol=1e-5)
