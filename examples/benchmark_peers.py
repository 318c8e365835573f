"""The layers that `benchmark.py` compares, ours and the others, and the devices they run on.

`SUBJECTS` makes each layer from a case. The naive ones are written as papers and ports write
them; those that stand for one of our layers have its weights, so that `check` can compare answers.
"""

import pathlib
import platform
import resource
import sys
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import keras
import numpy as np
from keras import ops

from keras_visattn import layers
from keras_visattn.ops import relative_logits_2d

HEADS = 8


class SameShape(keras.layers.Layer):
    """Abstract layer that says its output's shape: to find it, PyTorch would run it on zeros."""

    def compute_output_shape(self, input_shape):
        return input_shape


class UnfoldedSelfAttention2D(SameShape):
    """`LocalSelfAttention2D` through a copy of the map for each place of the window."""

    def __init__(self, filters, kernel_size=7, num_heads=HEADS, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.num_heads = num_heads

    def build(self, input_shape):
        shape = (self.kernel_size, self.filters // self.num_heads // 2)
        self.row_embeddings = self.add_weight(name="row_embeddings", shape=shape)
        self.column_embeddings = self.add_weight(name="column_embeddings", shape=shape)
        self.projection = keras.layers.Dense(
            3 * self.filters, use_bias=False, dtype=self.dtype_policy
        )
        self.projection.build(input_shape)

    def call(self, inputs):
        _, height, width, _ = inputs.shape
        half = self.filters // self.num_heads // 2
        query, key, value = ops.split(self.projection(inputs), 3, axis=-1)
        query = ops.reshape(query, (-1, height, width, self.num_heads, 2 * half))
        windows = (-1, height, width, self.kernel_size**2, self.num_heads, 2 * half)
        key = ops.reshape(self._unfold(key), windows)
        value = ops.reshape(self._unfold(value), windows)
        row = ops.repeat(self.row_embeddings, self.kernel_size, axis=0)
        column = ops.tile(self.column_embeddings, (self.kernel_size, 1))
        logits = ops.einsum("bhwnd,bhwknd->bhwnk", query, key)
        logits += ops.einsum("bhwnd,kd->bhwnk", query[..., :half], row)
        logits += ops.einsum("bhwnd,kd->bhwnk", query[..., half:], column)
        inside = self._unfold(ops.ones((1, height, width, 1), dtype=logits.dtype))
        inside = ops.reshape(inside, (1, height, width, 1, self.kernel_size**2))
        scores = ops.softmax(ops.where(inside > 0, logits, -3e4))
        outputs = ops.einsum("bhwnk,bhwknd->bhwnd", scores, value)
        return ops.reshape(outputs, (-1, height, width, self.filters))

    def _unfold(self, x):
        """Stacks the shifted copies of a map, `(B, H, W, K * K, C)`."""
        _, height, width, _ = x.shape
        reach = self.kernel_size // 2
        x = ops.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
        shifts = np.ndindex(self.kernel_size, self.kernel_size)
        copies = [x[:, top : top + height, left : left + width] for top, left in shifts]
        return ops.stack(copies, axis=3)


class DenseRelativeAttention2D(SameShape):
    """The attention of `AugmentedConv2D` through the full matrix of relative logits."""

    def __init__(self, filters, num_heads=HEADS, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.num_heads = num_heads

    def build(self, input_shape):
        batch, height, width, _ = input_shape
        size = self.filters // self.num_heads
        self.row_table = self.add_weight(name="row_table", shape=(2 * height - 1, size))
        self.column_table = self.add_weight(name="column_table", shape=(2 * width - 1, size))
        dense = {"use_bias": False, "dtype": self.dtype_policy}
        self.projection = keras.layers.Dense(3 * self.filters, **dense)
        self.projection.build(input_shape)
        self.combination = keras.layers.Dense(self.filters, **dense)
        self.combination.build((batch, height, width, self.filters))

    def call(self, inputs):
        _, height, width, _ = inputs.shape
        size = self.filters // self.num_heads
        query, key, value = (
            ops.reshape(x, (-1, height, width, self.num_heads, size))
            for x in ops.split(self.projection(inputs), 3, axis=-1)
        )
        relative = relative_logits_2d(query, self.row_table, self.column_table)
        query, key, value = (
            ops.reshape(x, (-1, height * width, self.num_heads, size)) for x in (query, key, value)
        )
        logits = ops.einsum("btnd,bsnd->bnts", query, key) + relative
        scores = ops.softmax(logits * size**-0.5)
        outputs = ops.einsum("bnts,bsnd->btnd", scores, value)
        return self.combination(ops.reshape(outputs, (-1, height, width, self.filters)))


class SelfAttention(SameShape):
    """Gives a multi-head attention of Keras' form its input as query and as value."""

    def __init__(self, attention, **kwargs):
        super().__init__(**kwargs)
        self.attention = attention

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)

    def call(self, inputs):
        return self.attention(inputs, inputs)


class Scale(SameShape):
    """Multiplies a map by one weight, 2 at the start: a read and a write, and no less."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", initializer=keras.initializers.Constant(2))

    def call(self, inputs):
        return inputs * self.scale


def naive_cbam(channels, reduction_ratio=16, kernel_size=7):
    """Makes CBAM as people write it in PyTorch, which only its backend can import."""
    import torch
    from torch import nn

    class NaiveCBAM(nn.Module):
        def __init__(self):
            super().__init__()
            hidden = channels // reduction_ratio
            self.mlp = nn.Sequential(
                nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
            )
            self.convolution = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
            self.batch_norm = nn.BatchNorm2d(1)

        def forward(self, x):
            average = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
            largest = nn.functional.adaptive_max_pool2d(x, 1).flatten(1)
            gate = torch.sigmoid(self.mlp(average) + self.mlp(largest))
            x = x * gate[:, :, None, None]
            pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], dim=1)
            return x * torch.sigmoid(self.batch_norm(self.convolution(pooled)))

    return NaiveCBAM()


def torch_self_attention(channels):
    """Makes PyTorch's own multi-head attention, with one input and one output."""
    from torch import nn

    class TorchSelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(channels, HEADS, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    return TorchSelfAttention()


def timm_layers():
    """Imports timm's layers; where torchvision does not load, mocks stand for it."""
    try:
        import torchvision  # noqa: F401
    except Exception:  # a wheel built for another PyTorch fails in its own ways
        parts = ("datasets", "models", "models.feature_extraction", "ops", "ops.misc")
        parts += ("transforms", "transforms.functional")
        names = ["torchvision", *(f"torchvision.{part}" for part in parts)]
        sys.modules.update({name: mock.MagicMock() for name in names})
    import timm.layers

    return timm.layers


def halo_attention(case):
    """Makes timm's HaloAttn with a reach of three pixels, in the largest blocks that fit."""
    block = max(size for size in range(1, 9) if case.shape[1] % size == 0)
    return timm_layers().halo_attn.HaloAttn(
        case.channels, num_heads=HEADS, block_size=block, halo_size=3
    )


def bottleneck_attention(case):
    return timm_layers().bottleneck_attn.BottleneckAttn(
        case.channels, feat_size=case.shape[1:3], num_heads=HEADS
    )


def local_attention(case):
    return layers.LocalSelfAttention2D(case.channels, case.kernel_size, HEADS)


def augmented(case):
    """Makes the layer whose values take every channel: attention alone, no convolution."""
    width = case.channels
    return layers.AugmentedConv2D(
        width, 3, total_key_dim=width, total_value_dim=width, num_heads=HEADS
    )


def resnet50(case):
    return keras.applications.ResNet50(weights=None, input_shape=case.shape[1:])


def attention_resnet50(case):
    """Puts local attention in the place of each 3x3 convolution; the stem stays."""

    def swap(layer):
        if isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (3, 3):
            return layers.LocalSelfAttention2D(layer.filters, case.kernel_size, name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(resnet50(case), clone_function=swap)


def in_keras(make_module):
    """Makes a module of PyTorch a layer of Keras, so that all go the same way."""

    def make(case):
        import torch

        dtype = getattr(torch, keras.config.dtype_policy().compute_dtype)
        shape = (None, *input_shape_of(case, foreign=True)[1:])
        return keras.layers.TorchModuleWrapper(make_module(case).to(dtype), output_shape=shape)

    return make


def input_shape_of(case, foreign):
    """Gives a case's shape; PyTorch's own modules want the channels of a map first."""
    if foreign and len(case.shape) == 4:
        batch, height, width, channels = case.shape
        return (batch, channels, height, width)
    return case.shape


SUBJECTS = {
    "Conv2D": lambda case: keras.layers.Conv2D(case.channels, 3, padding="same", use_bias=False),
    "LocalSelfAttention2D": local_attention,
    "LocalSelfAttention2D k=3": lambda case: local_attention(case._replace(kernel_size=3)),
    "LocalSelfAttention2D k=15": lambda case: local_attention(case._replace(kernel_size=15)),
    "naive unfold": lambda case: UnfoldedSelfAttention2D(case.channels, case.kernel_size),
    "timm HaloAttn": in_keras(halo_attention),
    "timm BottleneckAttn": in_keras(bottleneck_attention),
    "AugmentedConv2D": augmented,
    "AugmentedConv2D of the paper": lambda case: layers.AugmentedConv2D(
        case.channels, 3, num_heads=HEADS
    ),
    "dense logits": lambda case: DenseRelativeAttention2D(case.channels),
    "MultiHeadAttention": lambda case: SelfAttention(
        layers.MultiHeadAttention(HEADS, case.channels // HEADS)
    ),
    "keras MultiHeadAttention": lambda case: SelfAttention(
        keras.layers.MultiHeadAttention(HEADS, case.channels // HEADS)
    ),
    "torch MultiheadAttention": in_keras(lambda case: torch_self_attention(case.channels)),
    "ResNet50": resnet50,
    "attention ResNet50": attention_resnet50,
    "CBAM": lambda case: layers.CBAM(),
    "ChannelAttention": lambda case: layers.ChannelAttention(),
    "SpatialAttention": lambda case: layers.SpatialAttention(),
    "SqueezeExcite": lambda case: layers.SqueezeExcite(),
    "GatherExcite": lambda case: layers.GatherExcite(),
    "BAM": lambda case: layers.BAM(),
    "GALA": lambda case: layers.GALA(),
    "x * 2": lambda case: Scale(),
    "torch naive CBAM": in_keras(lambda case: naive_cbam(case.channels)),
    "timm CbamModule": in_keras(lambda case: timm_layers().cbam.CbamModule(case.channels)),
}


def check(ours, naive, case):
    """Makes sure that two layers answer the same with the same weights."""
    x = np.random.default_rng(0).normal(size=case.shape).astype("float32")
    pair = [SUBJECTS[name](case) for name in (ours, naive)]
    for layer in pair:
        layer.build(case.shape)
    draw = np.random.default_rng(1)
    weights = [draw.normal(scale=0.2, size=weight.shape) for weight in pair[0].weights]
    for layer in pair:
        layer.set_weights(weights)
    answers = [ops.convert_to_numpy(layer(x)) for layer in pair]
    difference = np.abs(answers[0] - answers[1]).max()
    if not difference <= 1e-3:  # so that NaN differs too
        raise SystemExit(f"{ours} and {naive} must answer the same. Received: {difference=}")


def make_run(subject, case, mode, device):
    """Makes a function that runs a subject once and returns when it is done."""
    dtype = keras.config.dtype_policy().compute_dtype
    layer = SUBJECTS[subject](case)
    shape = input_shape_of(case, isinstance(layer, keras.layers.TorchModuleWrapper))
    model = keras.Sequential([keras.Input(shape[1:], dtype=dtype), layer])
    values = np.random.default_rng(0).standard_normal(shape, dtype="float32")
    x = ops.convert_to_tensor(values, dtype=dtype)
    if mode == "call":
        return device.call(layer, x)
    if mode == "predict":
        return lambda: model.predict_on_batch(x)
    target = ops.zeros((shape[0], *model.output_shape[1:]), dtype=dtype)
    model.compile(optimizer=keras.optimizers.SGD(), loss="mse")
    return lambda: model.train_on_batch(x, target)


class Device(NamedTuple):
    """How a backend calls a bare layer, and how it counts the bytes that it holds."""

    name: str
    call: Callable  # makes a function that runs a layer, under the compiler if there is one
    forget_peak: Callable
    held: Callable
    peak: Callable


def tensorflow_device():
    import tensorflow as tf

    def call(layer, x):
        compiled = tf.function(lambda x: layer(x, training=False), jit_compile=True)
        return lambda: compiled(x).numpy()

    memory = tf.config.experimental
    for gpu in tf.config.list_physical_devices("GPU"):
        return Device(
            memory.get_device_details(gpu)["device_name"],
            call,
            lambda: memory.reset_memory_stats("GPU:0"),
            lambda: memory.get_memory_info("GPU:0")["current"],
            lambda: memory.get_memory_info("GPU:0")["peak"],
        )
    return on_cpu(call)


def jax_device():
    import jax

    def call(layer, x):
        compiled = jax.jit(lambda *inputs: layer.stateless_call(*inputs)[0])
        weights = [weight.value for weight in layer.trainable_variables]
        others = [weight.value for weight in layer.non_trainable_variables]
        return lambda: jax.block_until_ready(compiled(weights, others, x))

    device = jax.devices()[0]
    if device.platform == "cpu":
        return on_cpu(call)
    return Device(
        device.device_kind,
        call,
        lambda: None,  # JAX cannot, so that its peak has what compiling took
        lambda: device.memory_stats()["bytes_in_use"],
        lambda: device.memory_stats()["peak_bytes_in_use"],
    )


def torch_device():
    import torch

    def call(layer, x):
        @torch.no_grad()
        def run():
            layer(x, training=False)
            if x.is_cuda:
                torch.cuda.synchronize()

        return run

    cuda = torch.cuda
    if not cuda.is_available():
        return on_cpu(call)
    memory = cuda.reset_peak_memory_stats, cuda.memory_allocated, cuda.max_memory_allocated
    return Device(cuda.get_device_name(), call, *memory)


def on_cpu(call):
    """Gives the CPU, where Linux counts: the peak of `getrusage` would begin with the parent's."""
    limit_memory()
    return Device(
        field_of("/proc/cpuinfo", "model name") or platform.processor() or "CPU",
        call,
        lambda: pathlib.Path("/proc/self/clear_refs").write_text("5"),
        lambda: bytes_in("/proc/self/status", "VmRSS"),
        lambda: bytes_in("/proc/self/status", "VmHWM"),
    )


def limit_memory():
    """Makes a subject that wants more memory than is free fail alone, not with its neighbours."""
    free = bytes_in("/proc/meminfo", "MemAvailable")
    resource.setrlimit(resource.RLIMIT_DATA, (free, free))


def bytes_in(path, field):
    """Reads a size, which Linux writes in kibibytes."""
    return 1024 * int(field_of(path, field).split()[0])


def field_of(path, field):
    for line in pathlib.Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def device_of_backend():
    devices = {"tensorflow": tensorflow_device, "jax": jax_device, "torch": torch_device}
    return devices[keras.backend.backend()]()
