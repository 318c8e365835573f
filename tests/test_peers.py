"""Peers of the benchmark that claim to be a layer of ours answer as it does, with its weights."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
from building import numpy, randomize
from test_reference import sample

from keras_visattn import layers

EXAMPLES = Path(__file__).parents[1] / "examples"
WITHOUT_TIMM = (
    "timm is not installed: it asks for torchvision, whose wheel does not load beside PyTorch's "
    "build for the CPU. `pip install --no-deps timm` is enough."
)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the peers are PyTorch's modules")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # timm
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "naive CBAM",
        pytest.param(
            "timm",
            marks=pytest.mark.skipif(not importlib.util.find_spec("timm"), reason=WITHOUT_TIMM),
        ),
    ],
)
def test_cbam_answers_and_learns_as_its_peers(name, training, monkeypatch):
    import torch

    monkeypatch.syspath_prepend(EXAMPLES)
    import benchmark_peers

    channels, shape = 32, (3, 9, 7, 32)
    if name == "timm":
        peer = benchmark_peers.timm_layers().cbam.CbamModule(channels)
    else:
        peer = benchmark_peers.naive_cbam(channels)
    layer = layers.CBAM(use_bias=name != "timm")
    layer.build(shape)
    randomize(layer)
    peer.train(training)
    with torch.no_grad():  # the last of the peer's numbers counts its steps
        for tensor, value in zip(peer.state_dict().values(), layer.get_weights(), strict=False):
            kernel = np.moveaxis(value, (-1, -2), (0, 1)) if value.ndim > 1 else value
            tensor.copy_(torch.tensor(kernel).reshape(tensor.shape))
    found, expected = (torch.tensor(sample(*shape), requires_grad=True) for _ in range(2))
    outputs = layer(found, training=training)
    answers = peer(expected.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(numpy(outputs), numpy(answers), atol=1e-5)
    factors = torch.tensor(sample(*shape, seed=2))
    for x in (outputs, answers):
        (x * factors).sum().backward()
    scale = float(expected.grad.abs().max())
    np.testing.assert_allclose(found.grad, expected.grad, atol=1e-5 * scale)
