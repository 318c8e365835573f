"""The loops of CBAM's gates: each answers as the formula does, and so does each gradient."""

import keras
import numpy as np
import pytest
from building import numpy, randomize
from gradients import gradient_twice, gradients
from test_reference import sample

from keras_visattn import layers
from keras_visattn.kernels import gates, threads
from keras_visattn.ops import gating

BACKEND = keras.backend.backend()
torch_only = pytest.mark.skipif(BACKEND != "torch", reason="XLA fuses the formula")
MAPS = [(3, 9, 7, 20), (2, 5, 4, 6), (2, 6, 3, 1), (2, 1, 1, 40), (2, 41, 53, 3)]


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch):
    monkeypatch.setattr(gates, "SMALLEST", 1)


class Refine(keras.layers.Layer):
    """A layer's gates by one implementation: the product, or both gates in one number a pixel."""

    def __init__(self, layer, implementation, gates_only=False):
        super().__init__()
        self.layer = layer  # whose weights this has
        self.implementation = implementation
        self.gates_only = gates_only

    def call(self, inputs, training=False):
        pooled = pooled_gates(self.layer, training)
        outputs, values = gating.refine(inputs, pooled, implementation=self.implementation)
        return values[0] * values[1] if self.gates_only else outputs


def pooled_gates(layer, training=False):
    return [gate.pooled_gate(training) for gate in layer.gates.values()]


def both(shape, **settings):
    """Two layers that share the weights of a CBAM: the formula and the loops."""
    layer = layers.CBAM(2, 3)
    layer.build(shape)
    randomize(layer)
    return [Refine(layer, implementation, **settings) for implementation in ("core", "loops")]


def assert_gradients_agree(pair, images, factors):
    expected, found = (keras.tree.flatten(gradients(x, [images], factors)) for x in pair)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            one, other, atol=1e-5 * max(1, np.abs(np.nan_to_num(other)).max())
        )


@torch_only
@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_loops_answer_and_learn_as_the_formula(shape):
    core, loops = both(shape)
    images = sample(*shape)
    np.testing.assert_allclose(numpy(loops(images)), numpy(core(images)), rtol=1e-5, atol=1e-6)
    assert_gradients_agree((core, loops), images, sample(*shape, seed=2))


@torch_only
def test_loops_on_a_batch_of_one():
    # PyTorch cannot differentiate the convolution then
    gates_of_one = [
        gating.PooledGate((1, 2), ("avg", "max"), lambda mean, most: mean[:, None, None] + most),
        gating.PooledGate((3,), ("avg", "max"), lambda mean, most: (mean - 2 * most)[..., None]),
    ]

    class Fixed(keras.layers.Layer):
        def __init__(self, implementation):
            super().__init__()
            self.implementation = implementation

        def call(self, inputs):
            return gating.refine(inputs, gates_of_one, implementation=self.implementation)[0]

    images, factors = sample(1, 33, 40, 9), sample(1, 33, 40, 9, seed=2)
    assert_gradients_agree([Fixed("core"), Fixed("loops")], images, factors)


@torch_only
def test_gradients_of_the_gates_alone():
    images = sample(2, 5, 4, 6)
    assert_gradients_agree(both(images.shape, gates_only=True), images, sample(2, 5, 4, 6, seed=2))


@torch_only
def test_equal_values_share_the_gradient_of_the_largest():
    images = np.round(sample(2, 9, 8, 12))
    images[0, ..., 3] = images[1, 2:4] = 0  # whole channels and whole pixels
    assert_gradients_agree(both(images.shape), images, sample(*images.shape, seed=2))


@torch_only
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_loops_keep_what_is_not_finite(value):
    images = sample(2, 5, 4, 6)
    images[1, 2, 3, 4] = value
    expected, found = (
        [numpy(pool) for pool in pooled_values(images, implementation)]
        for implementation in ("core", "loops")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    if np.isnan(value):
        assert_gradients_agree(both(images.shape), images, sample(*images.shape, seed=2))


def pooled_values(images, implementation):
    """What the gates are told of a map; the first gate is negative for some channels."""
    import torch

    seen = []

    def channel_gate(*pooled):
        seen.extend(pooled)
        return torch.linspace(-1, 2, images.shape[-1]).expand(images.shape[0], 1, 1, -1)

    def pixel_gate(*pooled):
        seen.extend(pooled)
        return torch.ones(*images.shape[:3], 1)

    pooled = [
        gating.PooledGate(axes, ("avg", "max"), function)
        for axes, function in (((1, 2), channel_gate), ((3,), pixel_gate))
    ]
    gating.refine(torch.tensor(images), pooled, implementation=implementation)
    return seen


@torch_only
def test_loops_take_maps_that_lie_in_memory_in_another_order():
    import torch

    core, loops = both((2, 6, 5, 8))
    images = torch.tensor(sample(2, 8, 5, 6)).transpose(1, 3)
    np.testing.assert_allclose(numpy(loops(images)), numpy(core(images)), atol=1e-6)
    one_number = loops(images.requires_grad_()).mean()  # its gradient repeats one place in memory
    (found,) = torch.autograd.grad(one_number, images)
    (expected,) = torch.autograd.grad(core(images).mean(), images)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@torch_only
@pytest.mark.parametrize("processors", [1, 3])
def test_loops_in_several_threads_and_bands(processors, monkeypatch):
    monkeypatch.setattr(threads, "processors", lambda: processors)
    monkeypatch.setattr(gates, "BAND", 24)
    test_loops_answer_and_learn_as_the_formula((3, 9, 7, 5))


@torch_only
def test_second_derivatives_of_the_loops():
    shape = 2, 5, 4, 6
    expected, found = (gradient_twice(x, sample(*shape)) for x in both(shape))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    expected, found = (gradient_twice(x, sample(*shape)) for x in both(shape, gates_only=True))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@torch_only
def test_a_map_that_is_not_differentiated_costs_no_gradient(monkeypatch):
    written = []
    real = gates.multiply_backward, gates.pool_channels_backward
    for function in real:
        name = function.__name__
        place = 4 if name == "multiply_backward" else 6

        def noted(*arrays, function=function, place=place):
            written.append(arrays[place])
            return function(*arrays)

        monkeypatch.setattr(gates, name, noted)
    _, loops = both((2, 5, 4, 6))
    (loops(sample(2, 5, 4, 6)) ** 2).sum().backward()
    assert written == [None, None]


@torch_only
def test_small_maps_take_the_formula(monkeypatch):
    monkeypatch.setattr(gates, "SMALLEST", 2**20)
    _, loops = both((2, 5, 4, 6))
    with pytest.raises(NotImplementedError):
        loops.call(keras.ops.convert_to_tensor(sample(2, 5, 4, 6)))


def test_loops_refuse_what_they_cannot_do():
    layer = layers.CBAM(2, 3)
    layer.build((2, 5, 4, 6))
    pooled = pooled_gates(layer)
    images = keras.ops.convert_to_tensor(sample(2, 5, 4, 6))
    refused = [
        (images, pooled, {"parallel": True}),
        (images, pooled[::-1], {}),
        (images, pooled[:1], {}),
        (images, [pooled[0]._replace(poolings=("max",)), pooled[1]], {}),
        (keras.ops.cast(images, "bfloat16"), pooled, {}),
        (keras.ops.zeros((0, 5, 4, 6)), pooled, {}),
    ]
    if BACKEND != "torch":
        refused.append((images, pooled, {}))
    for maps, functions, settings in refused:
        with pytest.raises(NotImplementedError):
            gating.refine(maps, functions, implementation="loops", **settings)


@torch_only
def test_transformed_and_compiled_programs_take_the_formula(monkeypatch):
    import torch

    core, _ = both((2, 5, 4, 6))
    chosen = Refine(core.layer, None)
    images = torch.tensor(sample(2, 5, 4, 6))
    expected = numpy(core(images))
    monkeypatch.setattr(gates, "pool_pixels", None)  # which nobody calls
    assert torch.func.grad(lambda x: chosen(x).sum())(images).shape == images.shape
    compiled = torch.compile(chosen, backend="eager", fullgraph=True)(images)
    np.testing.assert_allclose(numpy(compiled), expected, atol=1e-6)


@torch_only
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_takes_the_formula(policy):
    layer = layers.CBAM(2, 3, dtype=policy)
    images = sample(2, 5, 4, 6)
    assert keras.backend.standardize_dtype(layer(images).dtype) == layer.compute_dtype
