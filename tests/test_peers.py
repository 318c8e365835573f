"""Peers that claim to be a layer or a network of ours answer as it does, with its weights."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
from building import numpy, randomize
from test_reference import sample

from keras_visattn import layers, models

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "torch", reason="the peers are PyTorch's modules"
    ),
    pytest.mark.filterwarnings(
        "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
    ),  # timm
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["naive CBAM", "timm"])
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


def place_of(name):
    """Says where timm's network has a layer of ours."""
    kind = name.rpartition("_")[-1]
    if name.startswith("stem"):
        return f"{kind}1"
    stage, block, part = re.fullmatch(r"stage(\d)_block(\d+)_(\w+)_(?:conv|bn)", name).groups()
    within = f"downsample.{int(kind == 'bn')}" if part == "shortcut" else f"{kind}{part}"
    return f"layer{stage}.{int(block) - 1}.{within}"


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_answers_as_timms(depth, monkeypatch):
    import torch

    monkeypatch.syspath_prepend(EXAMPLES)
    import benchmark_peers

    benchmark_peers.timm_layers()
    import timm

    torch.manual_seed(0)
    peer = timm.create_model(f"resnet{depth}", num_classes=10).eval()
    model = models.ResNet(depth, classes=10, classifier_activation=None)
    for layer in model.layers:
        if not layer.weights:
            continue
        with torch.no_grad():
            if isinstance(layer, keras.layers.Dense):
                layer.set_weights([peer.fc.weight.T.numpy(), peer.fc.bias.numpy()])
                continue
            module = peer.get_submodule(place_of(layer.name))
            if isinstance(layer, keras.layers.Conv2D):
                layer.set_weights([module.weight.permute(2, 3, 1, 0).numpy()])
            else:
                for values in (module.weight, module.running_var):
                    values.uniform_(0.5, 1.5)
                for values in (module.bias, module.running_mean):
                    values.normal_()
                values = module.weight, module.bias, module.running_mean, module.running_var
                layer.set_weights([value.numpy() for value in values])
    for size in ((64, 64), (97, 131)):
        images = sample(1, *size, 3)
        with torch.no_grad():
            expected = peer(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(numpy(model(images)), expected, atol=1e-5 * scale)
