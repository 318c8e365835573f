"""Grad-CAM against loops, attention maps against the layers' scores, and the model untouched."""

import os
import subprocess
import sys
import threading

import cases
import keras
import numpy as np
import pytest
import reference_visualize
import saved_maps
from building import accepts_scores, answer, inputs_of, make, numpy, randomize
from keras import layers

import keras_visattn
from keras_visattn.visualize import attention_maps, grad_cam, show
from keras_visattn.visualize.inspection import find_map

DRAW = np.random.default_rng(5)
IMAGES = DRAW.normal(size=(3, 8, 6, 3)).astype("float32")


def classifier(activation=None, strides=1):
    """A network whose score is linear behind its last map: its gradient can be written down."""
    images = keras.Input((8, 6, 3))
    x = layers.Conv2D(5, 3, strides, padding="same", activation="tanh", name="first")(images)
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.Conv2D(5, 3, padding="same", name="branch")(x)
    x = layers.Add(name="sum")([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, layers.Dense(4, activation, name="scores")(x))
    randomize(model)
    return model


def expected(model, layer, classes, method="grad_cam"):
    """The loops, on the layer's map and the gradient that the mean and the last kernel give."""
    maps = answer(keras.Model(model.input, model.get_layer(layer).output), IMAGES)
    kernel = numpy(model.get_layer("scores").kernel)
    slopes = kernel.T[classes][:, None, None, :] / (maps.shape[1] * maps.shape[2])
    slopes = np.broadcast_to(slopes, maps.shape)
    cam = reference_visualize.METHODS[method](maps, slopes)
    return reference_visualize.resized(cam, *IMAGES.shape[1:3])


@pytest.mark.parametrize("method", reference_visualize.METHODS)
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
def test_grad_cam_is_that_of_the_loops(method, strides, activation):
    model = classifier(activation, strides)
    for layer in (None, "branch", model.get_layer("sum")):
        name = "branch" if layer == "branch" else "sum"
        found = grad_cam(model, IMAGES, layer, [2, 0, 3], method=method)
        assert found.shape == (3, 8, 6)
        np.testing.assert_allclose(
            found, expected(model, name, [2, 0, 3], method), rtol=1e-4, atol=2e-5
        )


def test_gradient_behind_the_map_is_that_of_differences():
    model = classifier()
    head = keras.Sequential([layers.Conv2D(6, 3, activation="tanh"), layers.Flatten()])
    inputs = keras.Input((8, 6, 5))
    head = keras.Model(inputs, layers.Dense(3)(head(inputs)))
    randomize(head)
    maps = answer(keras.Model(model.input, model.get_layer("norm").output), IMAGES[:1])
    whole = keras.Model(model.input, head(model.get_layer("norm").output))
    step = 1e-2
    shifts = step * np.eye(maps.size, dtype="float32").reshape(-1, *maps.shape[1:])
    up, down = (answer(head, maps + sign * shifts)[:, 1] for sign in (1, -1))
    slopes = ((up - down) / (2 * step)).reshape(maps.shape)
    cam = reference_visualize.grad_cam(maps, slopes)
    found = grad_cam(whole, IMAGES[:1], "norm", class_index=1)
    np.testing.assert_allclose(found, reference_visualize.resized(cam, 8, 6), atol=2e-3)


def test_highest_score_is_the_default_class_and_batches_do_not_matter():
    model = classifier()
    best = answer(model, IMAGES).argmax(-1)
    found = grad_cam(model, IMAGES)
    np.testing.assert_allclose(found, grad_cam(model, IMAGES, class_index=best), atol=1e-6)
    one_by_one = grad_cam(model, IMAGES, batch_size=2, verbose=0)
    np.testing.assert_allclose(found, one_by_one, rtol=1e-4, atol=1e-5)


def test_progress_is_shown_for_several_batches(capsys):
    model = classifier()
    grad_cam(model, IMAGES, batch_size=3)
    assert capsys.readouterr().out == ""
    grad_cam(model, IMAGES, batch_size=2)
    assert "2/2" in capsys.readouterr().out


def test_inner_models_several_outputs_and_maps_of_scores():
    inner = keras.Sequential(
        [keras.Input((8, 6, 3)), layers.Conv2D(5, 3, padding="same", name="conv"), layers.ReLU()],
        name="inner",
    )
    images = keras.Input((8, 6, 3))
    x = inner(images)
    scores = layers.Dense(4, "softmax", name="scores")(layers.GlobalAveragePooling2D()(x))
    dense = layers.Conv2D(4, 1, name="dense")(x)
    model = keras.Model(images, {"label": scores, "pixels": dense})
    randomize(model)
    np.testing.assert_allclose(
        grad_cam(model, IMAGES, "inner/conv", 1, output="label"),
        grad_cam(model, IMAGES, inner.get_layer("conv"), 1),
        atol=1e-6,
    )
    # the mean of 1x1 convolutions is linear in the map, as a dense layer on the mean is
    model.get_layer("dense").set_weights(
        [x if x.ndim == 1 else x[None, None] for x in model.get_layer("scores").get_weights()]
    )
    np.testing.assert_allclose(
        grad_cam(model, IMAGES, "conv", 1, output="pixels"),
        grad_cam(model, IMAGES, "conv", 1, output=0),
        atol=1e-5,
    )


def test_two_backends_see_the_same(tmp_path):
    other = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}[keras.backend.backend()]
    command = [sys.executable, saved_maps.__file__, tmp_path]
    subprocess.run(command, env={**os.environ, "KERAS_BACKEND": other}, check=True)
    found = saved_maps.maps_of(keras.saving.load_model(tmp_path / "model.keras"))
    with np.load(tmp_path / "maps.npz") as expected:
        assert set(expected) == set(found) and len(found) > 7
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], atol=1e-4)


def test_a_map_that_does_not_matter_is_dark():
    images = keras.Input((8, 6, 3))
    used, other = (layers.Conv2D(4, 3, name=name)(images) for name in ("used", "other"))
    scores = [layers.Dense(2)(layers.GlobalAveragePooling2D()(x)) for x in (used, other)]
    model = keras.Model(images, scores)
    assert not grad_cam(model, IMAGES, "other", output=0).any()
    model.trainable = False
    assert not grad_cam(model, IMAGES, "other", output=0).any()


def test_gates_of_one_channel_have_their_names():
    gate = keras_visattn.layers.CBAM(name="gate")
    half = keras_visattn.layers.ChannelAttention(name="half")
    model = keras.Sequential([keras.Input((8, 6, 1)), gate, half])
    maps = attention_maps(model, IMAGES[..., :1])
    assert maps["gate"]["channel"].shape == maps["half"]["channel"].shape == (3, 1)
    assert maps["gate"]["spatial"].shape == (3, 8, 6)


def test_channels_first_is_channels_last():
    def model_of(data_format):
        keras.config.set_image_data_format(data_format)
        shape = (8, 6, 3) if data_format == "channels_last" else (3, 8, 6)
        images = keras.Input(shape)
        local = keras_visattn.layers.LocalSelfAttention2D(8, 3, 2, name="local")
        x = layers.ReLU()(local(images))
        gate = keras_visattn.layers.CBAM(reduction_ratio=4, use_batch_norm=False, name="gate")
        x = layers.GlobalAveragePooling2D()(gate(x))
        model = keras.Model(images, layers.Dense(4)(x))
        randomize(model)
        array = IMAGES if data_format == "channels_last" else IMAGES.transpose(0, 3, 1, 2)
        return grad_cam(model, array, "local"), attention_maps(model, array, query=(3, 2))

    try:
        found, expected = [model_of(x) for x in ("channels_first", "channels_last")]
    finally:
        keras.config.set_image_data_format("channels_last")
    for one, other in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, last", [("MobileNetV2", "out_relu"), ("VGG16", "block5_pool")])
def test_last_map_of_known_networks(name, last):
    make_model = getattr(keras.applications, name)
    target, data_format = find_map(make_model(weights=None, input_shape=(64, 64, 3), classes=5))
    assert (target.name, data_format) == (last, "channels_last")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(16, 3, padding="same", name="conv")
        self.gate = keras_visattn.layers.CBAM(reduction_ratio=4, name="gate")
        self.dense = layers.Dense(4)

    def call(self, images):
        return self.dense(keras.ops.mean(self.gate(self.conv(images)), axis=(1, 2)))


def test_models_without_a_graph():
    model = Subclassed()
    model(IMAGES)
    randomize(model)
    assert grad_cam(model, IMAGES, "conv", 0).max() == 1
    maps = attention_maps(model, IMAGES)
    assert list(maps) == ["gate"] and maps["gate"]["spatial"].shape == (3, 8, 6)
    with pytest.raises(ValueError, match=r"no graph\. Received: layer=None"):
        grad_cam(model, IMAGES)


def test_model_is_as_it_was():
    model = keras_visattn.models.ResNet(18, "cbam", filters=16, classes=4)
    images = DRAW.normal(size=(2, 32, 32, 3)).astype("float32")
    before = [np.copy(x) for x in map(numpy, model.variables)]
    calls = [layer for layer in model._flatten_layers() if "call" in vars(layer)]
    grad_cam(model, images)
    attention_maps(model, images)
    for old, new in zip(before, map(numpy, model.variables), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [layer for layer in model._flatten_layers() if "call" in vars(layer)] == calls
    with pytest.raises(ValueError, match="class_index"):
        grad_cam(model, images, class_index=4)
    assert [layer for layer in model._flatten_layers() if "call" in vars(layer)] == calls


def test_other_threads_get_their_own_answers():
    model = classifier("softmax")
    plain = numpy(model(IMAGES))
    seen = []

    class Meanwhile(layers.Layer):
        def call(self, x):
            other = threading.Thread(target=lambda: seen.append(numpy(model(IMAGES))))
            other.start()
            other.join()
            return x

    whole = keras.Sequential([keras.Input((8, 6, 3)), Meanwhile(), model])
    grad_cam(whole, IMAGES, model.get_layer("sum"))
    np.testing.assert_allclose(seen[0], plain, rtol=1e-5)


SCORED = [case for case in cases.CASES if accepts_scores(make(case))]


@pytest.mark.parametrize("case", SCORED, ids=str)
def test_attention_maps_are_the_scores_of_the_layer(case):
    layer = make(case)
    arrays = inputs_of(case)
    inputs = [keras.Input(x.shape[1:]) for x in arrays]
    model = keras.Model(inputs, layer(*inputs))
    randomize(model)
    _, scores = answer(layer, *arrays, return_attention_scores=True)
    query = (1, 1) if arrays[0].ndim == 4 else None
    maps = attention_maps(model, arrays, query)[layer.name]
    gates = {"channel", "spatial", "gate"} & set(maps)
    if gates:
        flat = np.concatenate([np.sort(maps[name].ravel()) for name in sorted(gates)])
        values = [scores[name] for name in sorted(scores)] if isinstance(scores, dict) else [scores]
        own = np.concatenate([np.sort(x.ravel()) for x in values])
        np.testing.assert_allclose(flat, own, atol=1e-5)
    elif "keys" in maps:
        assert maps["keys"].ndim == 4 and len(maps["keys"]) == len(arrays[0])
        np.testing.assert_allclose(maps["keys"].sum(axis=(2, 3)), 1, atol=1e-4)
        rows = scores.reshape(len(scores), -1)
        for image, keys in enumerate(maps["keys"]):
            assert np.isclose(rows[image], keys.max(), atol=1e-6).any()
    else:
        for name, values in scores.items() if isinstance(scores, dict) else [("scores", scores)]:
            np.testing.assert_allclose(maps[name], values, atol=1e-5)


@pytest.mark.parametrize("padding, dilation_rate", [("same", 1), ("same", 2), ("valid", 1)])
def test_keys_of_a_window_lie_where_the_query_looks(padding, dilation_rate):
    layer = keras_visattn.layers.LocalSelfAttention2D(
        8, (3, 5), 2, dilation_rate=dilation_rate, padding=padding
    )
    images = DRAW.normal(size=(2, 7, 9, 3)).astype("float32")
    inputs = keras.Input((7, 9, 3))
    model = keras.Model(inputs, layer(inputs))
    _, scores = answer(layer, images, return_attention_scores=True)
    row, column = (2, 4) if padding == "same" else (1, 2)
    height, width = scores.shape[1:3]
    query = int((row + 0.5) * 7 / height), int((column + 0.5) * 9 / width)
    keys = attention_maps(model, images, query)[layer.name]["keys"]
    first = (1, 2) if padding == "same" else (0, 0)
    wanted = np.zeros((2, 2, 7, 9))
    for place in range(15):
        y = row + (place // 5 - first[0]) * dilation_rate
        x = column + (place % 5 - first[1]) * dilation_rate
        if 0 <= y < 7 and 0 <= x < 9:
            wanted[:, :, y, x] = scores[:, row, column, :, place]
    np.testing.assert_allclose(keys, wanted, atol=1e-6)


def test_shared_and_inner_attention_has_a_path_each():
    gate = keras_visattn.layers.CBAM(reduction_ratio=4, name="gate")
    images = keras.Input((8, 6, 16))
    inner = keras.Model(images, gate(layers.ReLU()(gate(images))), name="inner")
    maps = attention_maps(keras.Sequential([inner]), DRAW.normal(size=(2, 8, 6, 16)))
    assert list(maps) == ["inner/gate", "inner/gate (2)"]


def test_relative_tables_are_given_and_drawn():
    attention = keras_visattn.layers.AugmentedConv2D(
        8, 3, total_key_dim=8, total_value_dim=4, num_heads=2, name="augmented"
    )
    model = keras.Sequential([keras.Input((8, 6, 3)), attention])
    maps = attention_maps(model, IMAGES)
    np.testing.assert_array_equal(
        maps["augmented"]["rows"], numpy(attention.position_embedding.row_table)
    )
    assert maps["augmented"]["columns"].shape == (11, 4)
    figure = show(np.clip(IMAGES, 0, 1), maps, query=(4, 3))
    assert len([axis for axis in figure.axes if axis.images]) == 3 + 2 * 3 + 2


def test_pictures_are_drawn_and_written(tmp_path):
    model = classifier()
    cams = {"one": grad_cam(model, IMAGES, class_index=1), "best": grad_cam(model, IMAGES)}
    path = tmp_path / "maps.png"
    figure = show(IMAGES, cams, path, titles=["a", "b", "c"])
    assert path.read_bytes().startswith(b"\x89PNG")
    titles = [axis.get_title() for axis in figure.axes]
    assert {"a", "b", "c", "one", "best"} <= set(titles)
    overlays = [axis for axis in figure.axes if len(axis.images) == 2]
    np.testing.assert_array_equal(overlays[0].images[1].get_array(), cams["one"][0])
    assert show(IMAGES, cams["one"]).axes
    kinds = {"gates": {"channel": np.ones((3, 5)), "gate": np.ones((3, 4, 4, 5))}}
    assert show(IMAGES, kinds).axes
    assert show(IMAGES, {"block": {"scores": np.ones((3, 2, 7, 7))}}).axes


def test_drawing_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"keras_visattn\[visualize\]"):
        show(IMAGES, np.ones((3, 8, 6)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"layer": "nothing"}, r"the name of one layer.*Received: layer='nothing', which fits 0"),
        ({"layer": "scores"}, r"one map with four axes.*Received: scores"),
        ({"layer": layers.ReLU()}, "part of the model"),
        ({"class_index": -1}, r"from 0 on.*Received: class_index=-1"),
        ({"class_index": 4}, r"less than the number of classes.*class_index=4, classes=4"),
        ({"class_index": 1.5}, "an integer"),
        ({"class_index": [1, 2]}, r"one for each image\. Received: 2 of them, 3 images"),
        ({"output": 1}, r"name or the index of an output\. Received: output=1"),
        ({"output": "label"}, "name or the index of an output"),
        ({"method": "score_cam"}, r"must be one of 'grad_cam', 'grad_cam\+\+'"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"images": IMAGES[0]}, r"four axes.*Received"),
        ({"images": IMAGES[:0]}, r"not empty.*Received"),
    ],
)
def test_grad_cam_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        grad_cam(classifier(), **{"images": IMAGES, **arguments})


def test_maps_and_pictures_refuse():
    model = classifier()
    with pytest.raises(ValueError, match="must hold an attention layer"):
        attention_maps(model, IMAGES)
    gated = keras.Sequential([keras.Input((8, 6, 3)), keras_visattn.layers.CBAM()])
    for query in ((8, 0), (0, -1), (1.5, 2), 3, (1, 2, 3)):
        with pytest.raises(ValueError, match=r"`query` must be.*Received: query="):
            attention_maps(gated, IMAGES, query)
    with pytest.raises(ValueError, match="more than one pixel"):
        grad_cam(keras.Sequential([keras.Input((8, 6, 3)), layers.Flatten()]), IMAGES)
    for arguments, message in [
        ({"maps": {}}, "at least one map"),
        ({"maps": np.ones((2, 8, 6))}, "a map for each image"),
        ({"maps": np.ones((3, 8))}, "must have the axes"),
        ({"titles": ["a"]}, "a title for each image"),
        ({"images": IMAGES[..., :2]}, "1 or 3 channels"),
        ({"opacity": 2}, "`opacity` must be a number"),
    ]:
        with pytest.raises(ValueError, match=message):
            show(**{"images": IMAGES, "maps": np.ones((3, 8, 6)), **arguments})
