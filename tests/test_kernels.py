"""The fast paths: each answers as the formula does, and none makes the tensors it should avoid."""

import functools

import keras
import numpy as np
import pytest
import test_reference
from building import inputs_of, make, numpy, randomize, stateless
from cases import FIRST_CASES
from gradients import gradient_twice, gradients
from test_gradients import assert_gradients
from test_reference import AUGMENTED, LOCAL, STEM, sample

from keras_visattn import kernels, layers, ops
from keras_visattn.kernels import attention, windows

BACKEND = keras.backend.backend()
CHUNKED = [
    ("LocalSelfAttention2D", (19, 18), LOCAL),
    ("LocalSelfAttention2D", (18, 5), {**LOCAL, "padding": "valid", "kernel_size": 5}),
    ("LocalAttentionStem2D", (9, 7), {**STEM, "pool_size": 2}),
    ("AugmentedConv2D", (5, 4), {**AUGMENTED, "use_bias": True}),
]


@pytest.fixture
def no_loops(monkeypatch):
    def refuse(*arguments):
        raise NotImplementedError

    for name in ("window_attention", "block_attention", "attention_in_loops"):
        monkeypatch.setattr(kernels, name, refuse)


@pytest.mark.parametrize("limit", [1, 1000])
@pytest.mark.parametrize(("name", "size", "settings"), CHUNKED)
def test_chunks_answer_as_the_reference(name, size, settings, limit, monkeypatch, no_loops):
    monkeypatch.setattr(kernels, "scores_at_a_time", lambda: limit)
    test_reference.test_image_layer_equals_reference(name, size, settings)


@pytest.mark.parametrize(("name", "size", "settings"), CHUNKED)
def test_gradients_through_chunks(name, size, settings, monkeypatch, no_loops):
    monkeypatch.setattr(kernels, "scores_at_a_time", lambda: 1000)
    assert_gradients(name, settings, [sample(2, *size, 4)])


@pytest.mark.parametrize("mask", [None, (3, 2, 7, 9), (3, 1, 1, 9), (7, 9), (1, 2, 7, 1)])
@pytest.mark.parametrize("limit", [1, 100, 300])
def test_attention_in_chunks_of_images_and_of_queries(limit, mask, monkeypatch):
    tensors = sample(3, 2, 7, 4), sample(3, 2, 9, 4, seed=2), sample(3, 2, 9, 5, seed=3)
    if mask is not None:
        mask = sample(*mask, seed=4) > 0
    expected = numpy(ops.attention(*tensors, mask, implementation="core"))
    monkeypatch.setattr(kernels, "scores_at_a_time", lambda: limit)
    found = numpy(ops.attention(*tensors, mask, implementation="core"))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("limit", [1, 100, 10**9])
def test_dropout_in_chunks(limit, monkeypatch):
    monkeypatch.setattr(kernels, "scores_at_a_time", lambda: limit)
    query, key = np.ones((3, 2, 7, 4), "float32"), np.ones((3, 2, 64, 4), "float32")
    value, upstream = sample(3, 2, 64, 5), sample(3, 2, 7, 5, seed=2)
    attend = functools.partial(ops.attention, query, key, dropout=0.25, seed=3)

    # Dropped or not, a value counts as much on average, and each query drops others.
    outputs = numpy(attend(np.ones_like(value)))
    np.testing.assert_allclose(outputs.mean(), 1, atol=0.05)
    assert len(np.unique(outputs.round(5))) > 7
    assert np.abs(np.diff(numpy(attend(value)), axis=2)).max() > 1e-2

    # The gradient drops what the answer dropped: the answer is linear in the values.
    def score(tap, value):
        return keras.ops.sum(keras.ops.multiply(attend(tap(value)), upstream))

    _, gradient = kernels.gradient_at(score, [])(keras.ops.convert_to_tensor(value))
    expected = (numpy(attend(value)) * upstream).sum()
    np.testing.assert_allclose((numpy(gradient) * value).sum(), expected, rtol=1e-4)

    with_scores, scores = attend(value, return_scores=True)
    np.testing.assert_allclose(numpy(scores), 1 / 64, rtol=1e-5)
    if limit == 10**9:
        np.testing.assert_allclose(numpy(with_scores), numpy(attend(value)), atol=1e-6)


@pytest.mark.parametrize("implementation", [None, "core"])
@pytest.mark.parametrize("limit", [1, 100, 10_000])
def test_terms_of_rows_and_columns_are_added_to_the_logits(limit, implementation, monkeypatch):
    query, key, value = sample(2, 3, 6, 4), sample(2, 3, 20, 4, seed=2), sample(2, 3, 20, 4, seed=3)
    rows, columns = sample(2, 3, 6, 4, seed=4), sample(2, 3, 6, 5, seed=5)
    logits = np.einsum("bntd,bnsd->bnts", query, key)
    logits += (rows[..., :, None] + columns[..., None, :]).reshape(logits.shape)
    weights = np.exp(0.7 * logits)
    expected = np.einsum("bnts,bnse->bnte", weights / weights.sum(-1, keepdims=True), value)
    monkeypatch.setattr(kernels, "scores_at_a_time", lambda: limit)
    found = ops.attention(
        *map(keras.ops.convert_to_tensor, (query, key, value)),
        relative_logits=[keras.ops.convert_to_tensor(x) for x in (rows, columns)],
        scale=0.7,
        implementation=implementation,
    )
    np.testing.assert_allclose(numpy(found), expected, atol=1e-5)


@pytest.mark.parametrize("sizes", [(4, 4), (4, 7), (7, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_kernel_answers_as_the_core(sizes, masked):
    query, key, value = (
        keras.ops.convert_to_tensor(sample(2, 3, length, size, seed=length))
        for length, size in ((5, sizes[0]), (6, sizes[0]), (6, sizes[1]))
    )
    mask = np.random.default_rng(0).random((2, 1, 5, 6)) < 0.5 if masked else None
    if masked:
        mask[0, 0, 1] = False
    if BACKEND != "torch":
        with pytest.raises(NotImplementedError):
            ops.attention(query, key, value, mask, implementation="fused")
        return
    expected = ops.attention(query, key, value, mask, implementation="core")
    found = ops.attention(query, key, value, mask, implementation="fused")
    np.testing.assert_allclose(numpy(found), numpy(expected), atol=1e-6)


@pytest.mark.parametrize(("name", "size", "settings"), CHUNKED)
def test_a_compiled_step_trains_as_an_eager_one(name, size, settings):
    weights = []
    for eager in (True, False):
        layer = getattr(layers, name)(**settings)
        model = keras.Sequential([keras.Input((*size, 4)), layer])
        randomize(layer)
        model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=eager)
        images = sample(2, *size, 4)
        model.train_on_batch(images, np.zeros(model.compute_output_shape(images.shape)))
        weights.append(layer.get_weights())
    for found, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


in_calls = pytest.mark.skipif(
    BACKEND == "tensorflow", reason="TensorFlow has the loops in some graphs only"
)
WINDOWS = [  # map, heads, head size of keys and of values, window
    ((37, 9), 2, 4, 4, {"kernel_size": 3}),
    ((5, 70), 4, 6, 2, {"kernel_size": (1, 5)}),
    ((20, 3), 1, 3, 5, {"kernel_size": (5, 1), "dilation_rate": (2, 3)}),
    ((19, 18), 3, 2, 4, {"kernel_size": (3, 5), "dilation_rate": 2, "padding": "valid"}),
    ((2, 1), 2, 8, 8, {"kernel_size": 7}),
]


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize(("size", "heads", "head_size", "value_size", "window"), WINDOWS)
def test_window_kernel_answers_as_tiles(size, heads, head_size, value_size, window, embedded):
    shape = (2, *size, heads)
    maps = [sample(*shape, width, seed=width) for width in (head_size, head_size, value_size)]
    rows, columns = np.broadcast_to(window["kernel_size"], 2)
    if embedded and head_size % 2 == 0:
        maps += [sample(length, head_size // 2) for length in (rows, columns)]
    pair = (LocalAttention(**window, implementation=name) for name in ("core", "windows"))
    assert_same(*pair, maps)


def assert_same(core, loops, maps):
    """Compares answers, where eager calls have the loops, and gradients."""
    expected = numpy(core(*map(keras.ops.convert_to_tensor, maps)))
    if BACKEND != "tensorflow":
        found = numpy(loops(*map(keras.ops.convert_to_tensor, maps)))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    factors = sample(*expected.shape, seed=9)
    pairs = zip(
        *(gradients(layer, maps, factors, graph=True)[0] for layer in (loops, core)), strict=True
    )
    for found, expected in pairs:
        atol = 5e-5 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(found, expected, atol=atol)


class LocalAttention(keras.layers.Layer):
    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def call(self, *maps):
        return ops.local_attention_2d(*maps, **self.settings)


class Attention(LocalAttention):
    def call(self, query, key, value, *terms):
        return ops.attention(query, key, value, relative_logits=terms or None, **self.settings)


class BlockAttention(LocalAttention):
    def call(self, *maps):
        return ops.block_attention_2d(*maps, **self.settings)


HEADS = [  # images, heads, queries, rows and columns of keys, head size of keys and of values
    (2, 3, 300, (5, 7), 6, 5),  # two blocks of queries, the last keys not in fours
    (1, 1, 70, 301, 8, 8),  # parts of one head
    (1, 2, 17, 1, 3, 4),  # one key
    (2, 2, 1, (1, 3), 3, 9),  # one query
]


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_loops_of_attention_answer_as_the_core(heads):
    batch, count, length, keys, size, value_size = heads
    spans = keys if isinstance(keys, tuple) else ()
    shapes = [(length, size), (np.prod(keys), size), (np.prod(keys), value_size)]
    shapes += [(length, span) for span in spans]
    maps = [sample(batch, count, *shape, seed=i) for i, shape in enumerate(shapes)]
    assert_same(*(Attention(scale=0.7, implementation=name) for name in ("core", "loops")), maps)


@pytest.mark.parametrize(
    ("size", "heads", "head_size", "value_size", "block"),
    [((9, 7), 3, 5, 6, (4, 3)), ((3, 2), 2, 4, 8, 4), ((8, 40), 4, 4, 4, 4)],
)
def test_block_kernel_answers_as_tiles(size, heads, head_size, value_size, block):
    widths = head_size, head_size, value_size
    maps = [sample(2, *size, heads, width, seed=i) for i, width in enumerate(widths)]
    pair = (BlockAttention(block_size=block, implementation=name) for name in ("core", "blocks"))
    assert_same(*pair, maps)
    with pytest.raises(NotImplementedError, match="no scores"):
        ops.block_attention_2d(*maps, return_scores=True, implementation="blocks")


@in_calls
def test_loops_of_attention_take_large_logits_and_half_precision():
    query, key, value = (sample(1, 2, 40, 4, seed=seed) for seed in range(3))
    value[0, 0, 3] = np.nan
    tensors = [keras.ops.cast(x, "bfloat16") for x in (1e4 * query, key, value)]
    found, expected = (
        numpy(keras.ops.cast(ops.attention(*tensors, implementation=name), "float32"))
        for name in ("loops", "core")
    )
    assert np.isnan(found[0, 0]).all()
    np.testing.assert_allclose(found[0, 1], expected[0, 1], atol=1e-2)


@in_calls
def test_a_layer_in_loops_answers_as_the_reference(monkeypatch):
    name, size, settings = CHUNKED[3]
    calls, run = [], attention.run
    monkeypatch.setattr(attention, "pays", lambda *arguments: True)
    monkeypatch.setattr(attention, "run", lambda *arguments: calls.append(1) or run(*arguments))
    test_reference.test_image_layer_equals_reference(name, size, settings)
    assert_gradients(name, settings, [sample(2, *size, 4)])
    assert len(calls) >= 3  # forward, and forward and backward


def test_loops_of_attention_refuse_what_they_cannot_do():
    x = keras.ops.zeros((1, 2, 5, 4))
    with pytest.raises(NotImplementedError, match="no mask"):
        ops.attention(x, x, x, np.ones((5, 5), bool), implementation="loops")
    with pytest.raises(ValueError, match="neither scores nor dropout"):
        ops.attention(x, x, x, return_scores=True, implementation="loops")
    for empty in (x[:0], x[:, :, :0]):
        with pytest.raises(NotImplementedError):
            ops.attention(empty, empty, empty, implementation="loops")


def test_loops_serve_where_they_were_measured_to_win():
    def pays(length, size, keys=None):
        query, key = (np.empty((1, 1, n, size)) for n in (length, keys or length))
        return attention.pays(query, key, key, ((128, 16), (512, 32)))

    assert pays(128, 16) and pays(512, 32) and pays(64, 8, keys=256)
    assert not pays(127, 16) and not pays(511, 17) and not pays(4096, 33)
    unknown = keras.KerasTensor((None, 8, None, 32))
    assert attention.pays(unknown, unknown, unknown, ((512, 32),))


@in_calls
def test_window_kernel_keeps_what_is_not_a_number():
    maps = [sample(1, 9, 9, 2, 4, seed=seed) for seed in range(3)]
    maps[1][0, 4, 4, 0, 0] = np.nan
    maps = map(keras.ops.convert_to_tensor, maps)
    outputs = ops.local_attention_2d(*maps, kernel_size=3, implementation="windows")
    found = np.isnan(numpy(outputs)).all(-1)[0]
    expected = np.zeros((9, 9, 2), bool)
    expected[3:6, 3:6, 0] = True
    np.testing.assert_array_equal(found, expected)


def test_window_kernel_refuses_what_it_cannot_do():
    maps = [keras.ops.zeros((0, 5, 5, 2, 4))] * 3
    with pytest.raises(NotImplementedError):
        ops.local_attention_2d(*maps, kernel_size=3, implementation="windows")
    maps = [keras.ops.zeros((1, 5, 5, 2, 4))] * 3
    with pytest.raises(NotImplementedError, match="no scores"):
        ops.local_attention_2d(*maps, return_scores=True, implementation="windows")


@pytest.mark.parametrize("limit", [1000, 10**9])
def test_second_derivatives(limit, monkeypatch):
    monkeypatch.setattr(kernels, "scores_at_a_time", lambda: limit)
    layer = layers.LocalSelfAttention2D(4, 3, num_heads=2)
    image = sample(1, 18, 3, 2)
    layer.build(image.shape)
    randomize(layer)
    if BACKEND == "tensorflow" and limit == 1000:
        with pytest.raises(NotImplementedError, match="recompute_grad"):
            gradient_twice(layer, image)
        return
    found = gradient_twice(layer, image)

    def norm(image):
        (gradient,), _ = gradients(layer, [image], 2 * numpy(layer(image)))
        return (gradient.astype("float64") ** 2).sum()

    direction, step = sample(1, 18, 3, 2, seed=2), 1e-2
    expected = (norm(image + step * direction) - norm(image - step * direction)) / (2 * step)
    np.testing.assert_allclose((found * direction).sum(), expected, rtol=2e-2)


def loss_of(layer, shapes):
    """A function of inputs and weights for JAX, and their shapes."""
    import jax

    layer.build(*shapes)
    call = stateless(layer)

    def loss(inputs, values):
        return (call(values, inputs) ** 2).sum()

    inputs = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    values = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in layer.variables]
    return loss, inputs, values


@pytest.mark.skipif(BACKEND != "jax", reason="jax.export is JAX's")
@pytest.mark.parametrize("case", FIRST_CASES, ids=str)
def test_layer_compiles_for_accelerators(case):
    import jax.export

    loss, *arguments = loss_of(make(case), [x.shape for x in inputs_of(case)])
    for function in (loss, jax.grad(loss)):
        exported = jax.export.export(jax.jit(function), platforms=["cuda", "tpu"])(*arguments)
        assert exported.platforms == ("cuda", "tpu")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own graphs")
@pytest.mark.parametrize(
    ("work", "size", "layer"),
    [
        (windows, (9, 8), lambda: layers.LocalSelfAttention2D(16, 3)),
        (attention, (13, 11), lambda: layers.AugmentedConv2D(16, 3, value_ratio=0.5, num_heads=2)),
    ],
)
def test_loops_in_the_graphs_of_the_trainer_and_in_no_saved_one(
    work, size, layer, monkeypatch, tmp_path
):
    import tensorflow as tf

    calls, forward = [], work.forward

    def counted(*arrays, **settings):
        calls.append(arrays)
        forward(*arrays, **settings)

    monkeypatch.setattr(work, "forward", counted)
    images = sample(2, *size, 4)
    model = keras.Sequential([keras.Input((*size, 4)), layer()])
    model.compile("sgd", "mse")
    expected = numpy(model(images))
    model.export(tmp_path, verbose=False)
    program = tf.saved_model.load(tmp_path)
    saved = program.serve(images)
    assert not calls
    found = model.predict_on_batch(images)
    assert len(calls) == 1
    for x in (saved, found):
        np.testing.assert_allclose(x, expected, atol=1e-5)
    model.test_on_batch(images, expected)
    model.train_on_batch(images, expected)
    assert len(calls) == 3


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's own ways of running a function")
@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (LocalAttention(kernel_size=3, implementation="windows"), 3 * [(6, 5, 2, 4)]),
        (Attention(implementation="loops"), [*(3 * [(2, 6, 4)]), (2, 6, 2), (2, 6, 3)]),
    ],
)
def test_loops_in_transformed_programs(layer, shapes):
    import jax.export

    maps = [sample(2, *shape, seed=seed) for seed, shape in enumerate(shapes)]
    attend, places = layer.call, tuple(range(len(maps)))

    def grad(function, *maps):
        return jax.grad(lambda *maps: (function(*maps) ** 2).sum(), argnums=places)(*maps)

    expected = jax.tree.leaves([attend(*maps), grad(attend, *maps)])
    program = jax.export.export(jax.jit(lambda *maps: [attend(*maps), grad(attend, *maps)]))(*maps)
    exported = jax.export.deserialize(program.serialize()).call(*maps)
    one = jax.vmap(lambda *maps: attend(*(x[None] for x in maps))[0])
    for found in (exported, [one(*maps), grad(one, *maps)]):
        for x, y in zip(jax.tree.leaves(found), expected, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
    forward_mode, reverse_mode = (
        mode(lambda x: attend(x, *maps[1:]).sum((0, 1)))(maps[0])
        for mode in (jax.jacfwd, jax.jacrev)
    )
    np.testing.assert_allclose(forward_mode, reverse_mode, atol=1e-5)


def extra_bytes(layer, shape):
    """What a forward and backward pass makes on the way: at once in JAX, the largest in PyTorch."""
    if BACKEND == "jax":
        import jax

        loss, *arguments = loss_of(layer, [shape])
        program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
        return program.memory_analysis().temp_size_in_bytes
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            outputs = function(*arguments, **(named or {}))
            for x in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
                if isinstance(x, torch.Tensor):
                    self.size = max(self.size, x.untyped_storage().nbytes())
            return outputs

    image = torch.zeros(shape, requires_grad=True)
    with Largest() as largest:
        (layer(image) ** 2).sum().backward()
    return largest.size


measured = pytest.mark.skipif(
    BACKEND == "tensorflow", reason="TensorFlow gives no account of a program's memory"
)


@measured
@pytest.mark.parametrize("kernel_size", [3, 7, 15])
def test_local_attention_makes_no_copy_for_every_key_of_a_window(kernel_size):
    shape = (2, 112, 112, 32)
    copies = 4 * np.prod(shape) * kernel_size**2
    used = extra_bytes(layers.LocalSelfAttention2D(32, kernel_size), shape)
    assert used < max(0.5 * copies, 40 * 4 * np.prod(shape))


@measured
def test_global_attention_makes_no_square_of_the_pixels():
    shape = (2, 64, 64, 16)
    layer = layers.AugmentedConv2D(32, 3, total_key_dim=16, total_value_dim=16, num_heads=4)
    square = 4 * shape[0] * layer.num_heads * 64**4
    assert extra_bytes(layer, shape) < square / 4
