"""Surgery keeps what it does not change, changes what is meant, and refuses the rest."""

import keras
import numpy as np
import pytest
from building import answer, numpy, randomize
from test_reference import sample

from keras_visattn import layers, models, surgery

L = keras.layers


@keras.saving.register_keras_serializable(package="tests")
class Scale(L.Layer):
    """A user's layer, with a weight."""

    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, input_shape):
        self.weight = self.add_weight(name="weight", shape=(input_shape[-1],))

    def call(self, inputs):
        return inputs * self.weight * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class Forgetful(Scale):
    """A user's layer whose config lacks an argument that its constructor asks for."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size


OFFSET = 3.0


def block(x, filters, name, strides=1):
    """A residual block with a projection of the shortcut, and pads before a strided window."""
    y = L.ZeroPadding2D(1, name=f"{name}_pad")(x)
    y = L.Conv2D(
        filters, 3, strides, "valid", kernel_regularizer=keras.regularizers.L2(0.1),
        name=f"{name}_conv",
    )(y)  # fmt: skip
    y = L.BatchNormalization(name=f"{name}_bn")(y)
    y = L.Conv2D(filters, 3, padding="same", activation="relu", name=f"{name}_conv2")(y)
    x = L.Conv2D(filters, 1, strides, name=f"{name}_shortcut")(x)
    return L.Add(name=f"{name}_add")([x, y])


def residual(size=(12, 10), name="residual"):
    images = keras.Input((*size, 3), name="images")
    x = L.Conv2D(8, 3, padding="same", name="stem")(images)
    x = block(x, 8, "block1")
    x = block(x, 16, "block2", strides=2)
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return trained(keras.Model(images, L.Dense(4, name="logits")(x), name=name))


def various():
    """Two inputs, two outputs, a layer called twice, models inside, a lambda and a user's layer."""
    one, two = keras.Input((8, 8, 4), name="one"), keras.Input((8, 8, 4), name="two")
    shared = L.Conv2D(4, 3, padding="same", name="shared")
    inner = keras.Sequential(
        [keras.Input((8, 8, 4)), L.Conv2D(4, 3, padding="same", name="deep"), Scale(name="scale")],
        name="sequence",
    )
    images = keras.Input((8, 8, 4))
    frozen = L.BatchNormalization(name="frozen", trainable=False)
    nested = keras.Model(images, frozen(inner(images)), name="nested")
    x = L.Concatenate(name="both")([shared(one), shared(two)])
    x = L.Conv2D(4, 1, dtype="mixed_bfloat16", name="half")(x)
    x = L.Lambda(lambda x: x + OFFSET, output_shape=(8, 8, 4), name="lambda")(nested(x))
    x = keras.ops.relu(x - 1.0)
    outputs = {"map": x, "mean": L.GlobalAveragePooling2D(name="mean")(x)}
    return trained(keras.Model({"one": one, "two": two}, outputs, name="various"))


def trained(model):
    """Gives every weight and statistic a value that no initializer gives."""
    randomize(model)
    return model


def inputs_of(model, batch=2):
    arrays = [sample(batch, *x.shape[1:], seed=seed) for seed, x in enumerate(model.inputs)]
    names = [x.name for x in model.inputs]
    return arrays[0] if len(arrays) == 1 else dict(zip(names, arrays, strict=True))


def assert_equal(found, expected, tolerance=0.0):
    for a, b in zip(*map(keras.tree.flatten, (numpy(found), numpy(expected))), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


def state_of(model):
    return {v.path: numpy(v) for v in model.variables}


def gate(name="gate"):
    return layers.CBAM(2, 3, identity_start=True, name=name)


MODELS = {"residual": residual, "various": various}


@pytest.mark.parametrize("name", MODELS)
def test_what_stays_is_the_same(name, tmp_path):
    """A gate of no effect: answers, variables, settings and the given model are as before."""
    model = MODELS[name]()
    before, config = state_of(model), model.get_config()
    expected = numpy(model(inputs_of(model)))
    new = surgery.insert_after(model, L.Conv2D, gate())
    assert_equal(new(inputs_of(model)), expected)
    after = state_of(new)
    assert {path for path in after if "gate" not in path} == set(before)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)
    for candidate in surgery.graph.candidates(model):
        same = [c for c in surgery.graph.candidates(new) if c.path == candidate.path]
        assert len(same) == 1 and same[0].output_shape == candidate.output_shape
        for field in ("trainable", "dtype_policy", "kernel_regularizer", "momentum"):
            old, kept = (getattr(c.layer, field, None) for c in (candidate, same[0]))
            described = (keras.saving.serialize_keras_object(x) for x in (old, kept))
            assert next(described) == next(described), (candidate.path, field)
    # training the new model leaves the given one as it was
    new.compile("sgd", "mse")
    targets = keras.tree.map_structure(np.zeros_like, expected)
    new.train_on_batch(inputs_of(model), targets)
    assert_equal(model(inputs_of(model)), expected)
    assert model.get_config() == config
    for path, value in state_of(model).items():
        np.testing.assert_array_equal(value, before[path])
    moved = [path for path, value in state_of(new).items() if (value != after[path]).any()]
    assert any("gate" in path for path in moved)
    if name == "residual":  # a lambda asks for an unsafe mode
        new.save(tmp_path / "new.keras")
        loaded = keras.saving.load_model(tmp_path / "new.keras")
        assert_equal(loaded(inputs_of(model)), numpy(new(inputs_of(model))))


def test_shared_layers_stay_shared():
    new = surgery.insert_after(various(), "shared", gate())
    shared, behind = new.get_layer("shared"), new.get_layer("shared_gate")
    assert len(shared._inbound_nodes) == len(behind._inbound_nodes) == 2


def test_inner_models_are_edited():
    model = various()
    assert [c.path for c in surgery.find(model, "nested/sequence/*")] == [
        "nested/sequence/deep",
        "nested/sequence/scale",
    ]
    local = layers.LocalSelfAttention2D(4, 3, num_heads=2)
    new = surgery.replace(model, "deep", local)
    inner = new.get_layer("nested").get_layer("sequence")
    assert isinstance(inner, keras.Sequential)
    assert isinstance(inner.get_layer("deep"), layers.LocalSelfAttention2D)
    outputs = new(inputs_of(model))
    assert numpy(outputs["map"]).shape == (2, 8, 8, 4)


def test_a_sequential_model_stays_one():
    model = keras.Sequential(
        [keras.Input((8, 6, 3)), L.Conv2D(8, 3, name="a"), L.Conv2D(8, 3, name="b")]
    )
    x = inputs_of(trained(model))
    new = surgery.insert_after(model, "b", gate())
    assert isinstance(new, keras.Sequential) and [x.name for x in new.layers] == [
        "a",
        "b",
        "b_gate",
    ]
    assert_equal(new(x), numpy(model(x)))


def test_a_subclass_with_keras_constructor_keeps_its_class():
    class Mine(keras.Model):
        """A user's functional model."""

    model = residual()
    new = surgery.insert_after(Mine(model.input, model.output), "stem", gate())
    assert type(new) is Mine


def test_what_was_frozen_stays_frozen_and_new_layers_train():
    model = residual()
    model.get_layer("stem").trainable = False
    new = surgery.insert_after(model, "stem", gate())
    names = {v.path.split("/")[0] for v in new.trainable_variables}
    assert "stem_gate" in names and "stem" not in names and "logits" in names
    model.trainable = False
    new = surgery.insert_after(model, "stem", gate())
    assert {v.path.split("/")[0] for v in new.trainable_variables} == {"stem_gate"}
    outer = keras.Sequential([keras.Input((12, 10, 3)), residual(name="inner"), L.Dense(2)])
    outer.layers[0].trainable = False
    new = surgery.replace(outer, L.Dense, lambda layer: L.Dense(layer.units, name="new"))
    assert not new.layers[0].trainable or new.layers[0].get_layer("logits").trainable


def test_match_takes_classes_patterns_predicates_and_the_last():
    model = residual()

    def names(match):
        return [c.layer.name for c in surgery.find(model, match)]

    assert names("block?_conv2") == ["block1_conv2", "block2_conv2"]
    assert names(L.BatchNormalization) == names((L.BatchNormalization, L.Embedding))
    assert names(surgery.is_spatial_convolution) == [
        *("stem", "block1_conv", "block1_conv2", "block2_conv", "block2_conv2")
    ]
    assert names(surgery.Last(2)) == ["block2_conv", "block2_conv2"]
    assert names(surgery.Last(1, L.BatchNormalization)) == ["block2_bn"]
    assert names(lambda layer, *shapes: [s[1] for s in shapes] == [12, 6]) == ["block2_shortcut"]


def test_a_layer_to_copy_brings_its_weights_and_takes_name_and_dtype():
    model = residual()
    given = L.Conv2D(8, 3, padding="same", name="given")
    given.build((None, 12, 10, 3))
    new = surgery.replace(model, "stem", given).get_layer("stem")
    for copy, weight in zip(new.weights, given.weights, strict=True):
        np.testing.assert_array_equal(numpy(copy), numpy(weight))
        assert copy is not weight
    new = surgery.insert_after(various(), "half", gate())
    assert new.get_layer("half_gate").dtype_policy.name == "mixed_bfloat16"
    new = surgery.insert_after(surgery.insert_after(model, "stem", gate()), "stem", gate())
    assert {"stem_gate", "stem_gate_2"} < {layer.name for layer in new.layers}


def test_a_row_of_layers_ends_in_the_name_of_the_old_one():
    row = [L.Dropout(0.1, name="drop"), L.Conv2D(8, 5, padding="same")]
    new = surgery.replace(residual(), "stem", lambda layer: row)
    names = [layer.name for layer in new.layers]
    assert names.index("stem_drop") + 1 == names.index("stem")
    assert new.get_layer("stem").kernel_size == (5, 5)


def test_transfer_sees_old_and_new():
    def keep_bias(old, new):
        new.bias.assign(old.bias)

    model = residual()
    given = L.Conv2D(8, 5, padding="same")
    new = surgery.replace(model, "stem", given, transfer=keep_bias)
    np.testing.assert_array_equal(
        numpy(new.get_layer("stem").bias), numpy(model.get_layer("stem").bias)
    )


def test_a_compiled_model_is_compiled_again():
    model = residual()
    model.compile(keras.optimizers.SGD(0.25), "mse")
    new = surgery.insert_after(model, "stem", gate())
    assert float(numpy(new.optimizer.learning_rate)) == 0.25
    new.train_on_batch(inputs_of(model), np.zeros((2, 4)))

    def difference(y, z):
        return keras.ops.mean(y - z)

    model.compile("sgd", difference)
    with pytest.warns(UserWarning, match="not compiled"):
        assert not surgery.insert_after(model, "stem", gate()).compiled


def test_cbam_gates_branches_and_stages():
    model = residual()
    new = surgery.add_cbam(model, reduction_ratio=4)
    gates = [x for x in new.layers if isinstance(x, layers.CBAM)]
    assert [x.name for x in gates] == ["block1_conv2_cbam", "block2_conv2_cbam"]
    assert {x.reduction_ratio for x in gates} == {4}
    assert_equal(new(inputs_of(model)), numpy(model(inputs_of(model))), 1e-5)
    stages = surgery.add_cbam(model, "stage")
    names = [x.name for x in stages.layers if isinstance(x, layers.CBAM)]
    assert names == ["block1_add_cbam", "block2_add_cbam"]
    answers = surgery.add_cbam(model, identity_start=False)(inputs_of(model))
    assert np.abs(numpy(answers) - numpy(model(inputs_of(model)))).max() > 1e-3
    for depth in (18, 50):  # the same places as in our own network
        with keras.StatelessScope(initialize_variables=False):
            plain = surgery.graph.residual_branches(models.ResNet(depth))
        last = "2_bn" if depth == 18 else "3_bn"
        assert all(layer.name.endswith(last) for layer in plain)
        assert len(plain) == sum(models.resnet.BLOCKS[depth])


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_augmented_convolutions_keep_kernel_and_activation(data_format):
    if data_format == "channels_first" and keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no convolution with the channels first on a CPU")
    model = residual() if data_format == "channels_last" else first_residual()
    new = surgery.augment_convolutions(model, last=2, total_value_dim=8, min_key_dim=2)
    for name in ("block2_conv", "block2_conv2"):
        old = model.get_layer(name)
        rectified = name == "block2_conv2"
        layer = new.get_layer(f"{name}_augmented" if rectified else name)
        assert isinstance(layer, layers.AugmentedConv2D)
        np.testing.assert_array_equal(
            numpy(layer.convolution.kernel), numpy(old.kernel)[..., : 16 - 8]
        )
        np.testing.assert_array_equal(numpy(layer.convolution.bias), numpy(old.bias)[: 16 - 8])
        x = sample(*(2, *old.input.shape[1:]))
        convolved = numpy(old(x))
        axis = -1 if data_format == "channels_last" else 1
        augmented = new.get_layer(name)(layer(x)) if rectified else layer(x)
        first = np.split(numpy(augmented), 2, axis)[0]
        np.testing.assert_allclose(first, np.split(convolved, 2, axis)[0], atol=1e-5)
        kept = layer.convolution.kernel_regularizer
        assert kept is None or kept.l2 == old.kernel_regularizer.l2
    fresh = surgery.augment_convolutions(
        model, 1, keep_kernel=False, total_value_dim=8, min_key_dim=2, kernel_size=5
    )
    assert fresh.get_layer("block2_conv2_augmented").kernel_size == (5, 5)
    with pytest.raises(ValueError, match=r"`keep_kernel` must be false.*block2_conv2"):
        surgery.augment_convolutions(model, 1, total_value_dim=8, kernel_size=5)


def first_residual():
    previous = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        images = keras.Input((3, 12, 10))
        x = L.Conv2D(8, 3, padding="same", name="stem")(images)
        x = L.Conv2D(16, 3, 2, "valid", name="block2_conv")(x)
        x = L.Conv2D(16, 3, padding="same", activation="relu", name="block2_conv2")(x)
        return trained(keras.Model(images, x))
    finally:
        keras.config.set_image_data_format(previous)


@pytest.mark.parametrize("size", [(12, 10), (None, None)])
def test_local_attention_stands_where_the_convolution_stood(size):
    """A window of one pixel, whose only key is its own: what remains is a linear map of a pixel."""
    model = residual(size)
    new = surgery.replace_convolutions(model, kernel_size=1, num_heads=2)
    names = {x.name for x in new.layers if isinstance(x, layers.LocalSelfAttention2D)}
    assert names == {"block1_conv", "block1_conv2_local", "block2_conv", "block2_conv2_local"}
    assert isinstance(new.get_layer("stem"), L.Conv2D)
    strided = new.get_layer("block2_conv")
    assert strided.strides == 2 and strided.use_bias
    x = sample(2, 12, 10, 8)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = numpy(strided(new.get_layer("block2_conv_crop")(padded)))
    kernel, bias = (numpy(w)[..., 2 * 16 :] for w in strided.projection.weights)
    pooled = x.reshape(2, 6, 2, 5, 2, 8).mean((2, 4))
    np.testing.assert_allclose(found, pooled @ kernel + bias, atol=1e-5)
    assert numpy(new(sample(2, 12, 10, 3))).shape == (2, 4)


def test_report_says_what_changed_and_what_it_costs():
    model = residual()
    new = surgery.replace_convolutions(surgery.add_cbam(model), last=1, num_heads=2)
    report = surgery.report(model, new)
    kinds = {c.path: (c.kind, c.before, c.after) for c in report.changes}
    assert kinds == {
        "block1_conv2_cbam": ("inserted", None, "CBAM"),
        "block2_conv2_local": ("inserted", None, "LocalSelfAttention2D"),
        "block2_conv2": ("replaced", "Conv2D", "Activation"),
        "block2_conv2_cbam": ("inserted", None, "CBAM"),
    }
    added = sum(c.parameters for c in report.changes)
    assert added == report.after.parameters - report.before.parameters
    assert sum(c.macs for c in report.changes) == report.after.macs - report.before.macs
    assert "replaced: Conv2D -> Activation" in str(report) and "multiply-adds" in str(report)
    with pytest.raises(ValueError, match="size must be known"):
        surgery.report(residual((None, None)), residual((None, None)))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_a_quantized_model_with_attention_answers_nearly_the_same():
    model = surgery.add_cbam(residual(), identity_start=False)
    x = inputs_of(model)
    before = numpy(model(x))
    model.quantize("int8")
    error = np.abs(numpy(model(x)) - before).max() / np.abs(before).max()
    assert 0 < error < 0.05


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(2)

    def call(self, x):
        return self.dense(x)


class OwnStep(keras.Model):
    """Functional, with a training step that a graph does not show."""

    def train_step(self, *args):
        return super().train_step(*args)


def unclear():
    images = keras.Input((4, 4, 2))
    return keras.Model(images, Forgetful(3, name="forgetful")(L.Conv2D(2, 1)(images)))


def own_variable():
    model = residual()
    model.extra = model.add_weight(name="extra", shape=())
    return model


REFUSED = {
    "no match": (residual, "nothing", gate, "fit a layer of the graph.*match=nothing.*stem"),
    "no kind of match": (residual, 3, gate, "must be a class.*match=3"),
    "another shape": (
        *(residual, "stem", lambda: L.Conv2D(9, 3)),
        r"keep the shape.*Received: stem.*\(None, 10, 8, 9\)",
    ),
    "another rank": (residual, "pool", gate, "keep the shape.*Received: pool"),
    "no layer": (residual, "stem", lambda: 3, "`layer` must be.*layer=3"),
    "gives no layer": (residual, "stem", lambda: lambda layer: None, "must give.*None for stem"),
    "subclassed": (Subclassed, "dense", gate, "functional.*a Subclassed"),
    "own step": (
        lambda: OwnStep(*(lambda m: (m.input, m.output))(residual())),
        *("block1_bn", gate, "an? OwnStep, with its own train_step"),
    ),
    "config": (unclear, L.Conv2D, gate, "get_config.*Received: forgetful, a Forgetful"),
    "own variable": (own_variable, "block1_bn", gate, "belong to a layer.*extra"),
    "unbuilt": (lambda: keras.Sequential([L.Dense(2)]), L.Dense, gate, "that is built"),
}


@pytest.mark.parametrize("edit", [surgery.replace, surgery.insert_after])
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_by_name(case, edit):
    make, match, layer, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        edit(make(), match, layer())


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        (surgery.add_cbam, {"where": "path"}, "`where` must be one of"),
        (surgery.augment_convolutions, {"match": L.Dense}, "`match` must choose.*logits"),
        (surgery.augment_convolutions, {"last": 9}, "`last` must be.*last=9"),
        (surgery.augment_convolutions, {"last": 1, "num_heads": 32}, "For block2_conv2: .*head"),
        (surgery.replace_convolutions, {"num_heads": 3}, "For block1_conv: .*num_heads"),
        (surgery.Last, {}, "`count` must be a positive integer"),
    ],
)
def test_recipes_refuse_by_name(recipe, arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        recipe(0) if recipe is surgery.Last else recipe(residual(), **arguments)
    if recipe is surgery.add_cbam:
        images = keras.Input((8, 8, 3))
        plain = keras.Model(images, L.Conv2D(4, 3)(images))
        with pytest.raises(ValueError, match="must have a block of maps"):
            surgery.add_cbam(plain)


def test_layers_of_several_inputs_are_replaced():
    inputs = keras.Input((5, 16))
    other = keras.layers.Dense(16)(inputs)
    y = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, other)
    model = keras.Model(inputs, keras.layers.Add(name="sum")([y, inputs]))
    x = sample(3, 5, 16)

    def keep(old, new):
        new.set_weights(old.get_weights())

    new = surgery.replace(
        model,
        keras.layers.MultiHeadAttention,
        lambda old: layers.MultiHeadAttention.from_config(old.get_config()),
        transfer=keep,
    )
    assert type(new.get_layer("attention")) is layers.MultiHeadAttention
    np.testing.assert_allclose(answer(new, x), answer(model, x), atol=1e-5)
    averaged = surgery.replace(new, "sum", keras.layers.Average())
    np.testing.assert_allclose(2 * answer(averaged, x), answer(model, x), atol=1e-5)
