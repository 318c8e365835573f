"""PyTorch's checkpoints give our networks PyTorch's answers; other files change nothing."""

import pickle
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
import torch_resnet
from building import answer, numpy
from safetensors.torch import save_file
from test_reference import sample

from keras_visattn import models, weights

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"  # timm
)


def timm_model(name, monkeypatch, **arguments):
    monkeypatch.syspath_prepend(EXAMPLES)
    import benchmark_peers

    benchmark_peers.timm_layers()
    import timm

    return timm.create_model(name, num_classes=10, **arguments)


def peer_of(name, monkeypatch):
    """Makes a PyTorch network, and what makes ours."""
    if name == "authors' CBAM":
        return torch_resnet.CBAMResNet(), {"depth": 50, "attention": "cbam"}
    if name == "timm's CBAM":
        peer = timm_model("resnet18", monkeypatch, block_args={"attn_layer": "cbam"})
        return peer, {"depth": 18, "attention": "cbam", "use_bias": False}
    if name == "timm's SE":
        return timm_model("seresnet50", monkeypatch), {"depth": 50, "attention": "se"}
    peer = timm_model("resnext50_32x4d", monkeypatch)
    return peer, {"depth": 50, "cardinality": 32, "width": 4}


def ours(classes=10, **arguments):
    return models.ResNet(classes=classes, classifier_activation=None, **arguments)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["authors' CBAM", "timm's CBAM", "timm's SE", "timm's ResNeXt"])
def test_a_checkpoint_gives_pytorchs_logits(name, suffix, tmp_path, monkeypatch):
    if suffix == ".safetensors" and name != "timm's CBAM":
        pytest.skip("the formats differ in nothing but the reader")
    peer, arguments = peer_of(name, monkeypatch)
    torch_resnet.randomize(peer)
    path = tmp_path / f"checkpoint{suffix}"
    if suffix == ".safetensors":
        save_file(peer.state_dict(), path)
    elif name.startswith("authors"):  # as their script wrote it, in 2018's format
        state = {f"module.{key}": value for key, value in peer.state_dict().items()}
        state = {"epoch": 90, "arch": "resnet", "state_dict": state, "best_prec1": 77.0}
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(peer.state_dict(), path)
    model = ours(**arguments)
    weights.load_checkpoint(model, path)
    for size in ((64, 64), (97, 71)):
        images = sample(2, *size, 3)
        with torch.no_grad():
            expected = peer(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
        assert np.abs(expected).max() > 0.1
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(answer(model, images), expected, atol=1e-4 * scale)


@pytest.fixture
def small():
    """A network of ours, and the entries that fit it."""
    model = ours(depth=18, attention="cbam", filters=16)
    entries = {}
    for layer in model.layers:
        for v in layer.weights:
            value = sample(*v.shape)
            if value.ndim > 1:
                value = np.moveaxis(value, (-1, -2), (0, 1))
            entries[weights._entry_of(layer, v, authors=True)] = torch.tensor(value.copy())
    return model, entries


def without(entries, *names):
    return {key: value for key, value in entries.items() if key not in names}


def test_entries_that_are_skipped_stay(small, tmp_path):
    model, entries = small
    entries["fc.weight"] = torch.zeros(1000, 128)
    torch.save(entries, tmp_path / "a.pth")
    before = numpy(model.get_layer("predictions").kernel)
    weights.load_checkpoint(model, tmp_path / "a.pth", skip="fc.*")
    np.testing.assert_array_equal(numpy(model.get_layer("predictions").kernel), before)
    kernel = entries["conv1.weight"].permute(2, 3, 1, 0).numpy()
    np.testing.assert_array_equal(numpy(model.get_layer("stem_conv").kernel), kernel)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("malicious"),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: without(e, "bn1.bias"), r"missing: \['bn1.bias'\]"),
        (lambda e: {**e, "extra.weight": torch.zeros(1)}, r"unexpected: \['extra.weight'\]"),
        (lambda e: {**e, "conv1.weight": torch.zeros(64, 3, 3, 3)}, r"mismatched: .*conv1.weight"),
        (lambda e: {k.replace("layer", "block"): v for k, v in e.items()}, "missing.*unexpected"),
        (lambda e: {**e, "conv1.weight": Malicious()}, "nothing that could run.*Unpickling"),
        (lambda e: b"truncated", "must be a whole checkpoint"),
        (lambda e: [1, 2], "must be a whole checkpoint"),
    ],
)
def test_another_checkpoint_changes_nothing(small, change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, entries = small
    before = [numpy(v) for v in model.weights]
    torch.save(change(entries), "a.pth")
    if change(entries) == b"truncated":
        torch.save(entries, "a.pth")
        Path("a.pth").write_bytes(Path("a.pth").read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"(?s){message}"):
        weights.load_checkpoint(model, "a.pth")
    assert not Path("malicious").exists()
    for value, v in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(numpy(v), value)


def test_another_depth_model_or_file_is_refused(small, tmp_path):
    model, entries = small
    torch.save(entries, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"missing: .*layer1.2"):
        weights.load_checkpoint(ours(depth=34, attention="cbam", filters=16), tmp_path / "a.pth")
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="other")])
    with pytest.raises(ValueError, match="a layer other with"):
        weights.load_checkpoint(other, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a layer stage1_block1_gala"):
        weights.load_checkpoint(ours(depth=18, attention="gala", filters=16), tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match="`path` must be a file"):
        weights.load_checkpoint(model, tmp_path / "b.pth")
    with open(tmp_path / "c.pth", "wb") as file:
        pickle.dump(Malicious(), file)
    for name in ("c.pth", "c.safetensors"):
        (tmp_path / "c.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
        with pytest.raises(ValueError, match="must be a whole checkpoint"):
            weights.load_checkpoint(model, tmp_path / name)


@pytest.mark.parametrize(
    ("package", "name"), [("safetensors.numpy", "a.safetensors"), ("torch", "a.pth")]
)
def test_a_missing_package_is_named(small, package, name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"keras_visattn\[weights\]"):
        weights.load_checkpoint(small[0], tmp_path / name)
