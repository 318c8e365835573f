"""Trains small models on one device and on several, for `test_distribution.py` to compare.

`KERAS_BACKEND=jax python tests/spread_models.py FOLDER` writes `one.npz` and files of other names,
each with the losses of two steps of training, and the predictions before and after them. Without a
folder, it writes the table of `docs/guides/scaling.md` anew: what is shared out.
"""

import math
import os
import sys
from pathlib import Path

import keras
import numpy as np
from building import make
from cases import FIRST_CASES

from keras_visattn import distribution, layers, models

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import pages  # noqa: E402

PAGE = ROOT / "docs" / "guides" / "scaling.md"
MARKS = "<!-- table -->", "<!-- end of table -->"
DEVICES = [f"cpu:{index}" for index in range(8)]
NETWORKS = {
    "ResNet-18, CBAM": lambda: models.ResNet(18, "cbam", filters=16, classes=8),
    "ResNet-26, augmented": lambda: models.ResNet(
        26, "augmented", filters=32, classes=8, value_ratio=0.25
    ),
    "ResNet-26, local": lambda: models.ResNet(26, "local", filters=16, classes=8, stem="attention"),
    "WideResNet-10-1, BAM": lambda: models.WideResNet(10, 1, "bam", classes=8, reduction_ratio=4),
    "MnasNet": lambda: models.MnasNet(classes=8),
    "Transformer": lambda: models.Transformer(64, 1, 16, 32, num_heads=4),
    "RetinaNet": lambda: models.RetinaNet(models.ResNet(18, filters=16), classes=8),
}
DRAW = np.random.default_rng(0)
IMAGES = DRAW.normal(size=(8, 16, 12, 3)).astype("float32")
CLASSES = DRAW.integers(4, size=(8,))
TOKENS = DRAW.integers(1, 20, size=(3, 8, 5))


def attention_network():
    """Each attention on images, without statistics of batches, which some replicas keep apart."""
    inputs = keras.Input(IMAGES.shape[1:])
    x = keras.layers.Conv2D(8, 3, padding="same", name="stem_conv")(inputs)
    x = layers.LocalSelfAttention2D(8, 5, num_heads=4)(x)
    x = layers.CBAM(reduction_ratio=2, kernel_size=3, use_batch_norm=False)(x)
    x = layers.AugmentedConv2D(16, 3, total_key_dim=8, total_value_dim=8, num_heads=4)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="predictions")(x))


def every_layer():
    """Every layer on maps, side by side; its answer is all their pixels."""
    inputs = keras.Input(IMAGES.shape[1:])
    x = keras.layers.Conv2D(8, 3, padding="same", name="stem_conv")(inputs)
    stem = layers.LocalAttentionStem2D(8, 4, num_heads=4)(x)
    position = layers.RelativePositionEmbedding2D(16, 12)
    maps = [
        layers.LocalSelfAttention2D(8, 7, num_heads=4)(x),
        layers.LocalSelfAttention2D(8, 3, num_heads=2, dilation_rate=3)(x),
        layers.AugmentedConv2D(16, 3, total_key_dim=8, total_value_dim=8, num_heads=4)(x),
        layers.MultiHeadAttention(4, 2, position_embedding=position)(x, x),
        keras.layers.UpSampling2D(4)(stem),
        layers.ChannelAttention(2)(x),
        layers.SpatialAttention(7)(x),
        layers.CBAM(reduction_ratio=2, kernel_size=7)(x),
        layers.SqueezeExcite(2)(x),
        layers.GatherExcite(4, parametric=True)(x),
        layers.BAM(reduction_ratio=2, dilation_rate=4)(x),
        layers.GALA(2)(x),
        layers.SinusoidalPositionEncoding()(x),
        layers.CoordinateChannels2D(with_radius=True)(x),
    ]
    return keras.Model(inputs, keras.layers.Concatenate()(maps))


def transformer():
    return models.Transformer(20, 1, 16, 32, num_heads=4, dropout=0.0)


def train(make, inputs, targets):
    """Gives what a model answers, the losses of two steps, and what it answers then."""
    keras.utils.set_random_seed(3)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    first = model.predict(inputs, verbose=0)
    losses = [model.train_on_batch(inputs, targets) for _ in range(2)]
    outputs = model.predict(inputs, verbose=0)
    return {"first": first, "losses": np.array(losses), "outputs": outputs}


def train_on_images():
    return train(attention_network, IMAGES, CLASSES)


def train_on_tokens():
    return train(transformer, list(TOKENS[:2]), TOKENS[2])


def train_on_maps():
    targets = np.random.default_rng(1).integers(99, size=IMAGES.shape[:3])
    return train(every_layer, IMAGES, targets)


def on_jax(folder):
    import jax

    # JAX reads them when it is first asked for its devices.
    flags = "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_enable_concurrency_optimized_scheduler=false"
    os.environ["NPROC"] = "64"  # threads: a device that waits for the others holds one or more
    # Simulated devices share their threads: two steps at a time would wait for each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    np.savez(folder / "one.npz", **train_on_images())
    np.savez(folder / "one_transformer.npz", **train_on_tokens())
    np.savez(folder / "one_maps.npz", **train_on_maps())
    for name, run, ways in (
        ("data", train_on_images, {}),
        ("rows", train_on_images, {"rows": 4}),
        ("channels", train_on_images, {"channels": 4}),
        ("heads_transformer", train_on_tokens, {"channels": 4}),
        ("rows_maps", train_on_maps, {"rows": 8}),
    ):
        keras.distribution.set_distribution(distribution.parallel(**ways))
        np.savez(folder / f"{name}.npz", **run())
    np.savez(folder / "shard.npz", shapes=shapes_on_one_device())
    np.savez(folder / "xla.npz", wrong=error_of_a_convolution())


def error_of_a_convolution():
    """How far XLA's convolution of spread rows by a spread kernel is off: no Keras, no layer."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("batch", "rows", "channels"))
    x = DRAW.normal(size=(8, 16, 12, 8)).astype("float32")
    kernel = DRAW.normal(size=(3, 3, 8, 8)).astype("float32")

    @jax.jit
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected = np.asarray(convolve(x, kernel))
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch", "rows")))
    spread = NamedSharding(mesh, PartitionSpec(None, None, None, "channels"))
    return np.abs(np.asarray(convolve(x, jax.device_put(kernel, spread))) - expected).max()


def shapes_on_one_device():
    """The shapes of the input and of the answer on one device, the rows spread."""
    import jax

    model, spread = every_layer(), keras.distribution.distribution()
    images = keras.distribution.distribute_tensor(IMAGES, spread.get_data_layout(IMAGES.shape))
    values = [
        [x.value for x in y] for y in (model.trainable_variables, model.non_trainable_variables)
    ]
    answer, _ = jax.jit(model.stateless_call)(*values, images)
    return [x.addressable_shards[0].data.shape for x in (images, answer)]


def on_tensorflow(folder):
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    np.savez(folder / "one.npz", **train_on_images())
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        np.savez(folder / "mirrored.npz", **train_on_images())


def on_torch(folder):
    import torch

    np.savez(folder / "one.npz", **train_on_images())
    torch.multiprocessing.spawn(_on_torch, (str(folder),), nprocs=2)


def _on_torch(rank, folder):
    import torch
    from torch.nn.parallel import DistributedDataParallel

    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    keras.utils.set_random_seed(3)
    model = attention_network()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
    mine = slice(rank, None, 2)
    first, losses = model.predict(IMAGES, verbose=0), []
    for _ in range(2):
        targets = torch.tensor(CLASSES[mine])
        loss = torch.nn.functional.cross_entropy(parallel(torch.tensor(IMAGES[mine])), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        losses.append(float(total) / 2)
    if rank == 0:
        outputs = model.predict(IMAGES, verbose=0)
        np.savez(Path(folder) / "processes.npz", first=first, losses=losses, outputs=outputs)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def table():
    """Renders which variables of each layer are shared out, and how much of each network."""
    mesh = keras.distribution.DeviceMesh((8, 1, 1), distribution.AXES, DEVICES)
    layouts = distribution.layout_map(mesh)
    lines = ["| | shared out | on all devices |", "|---|---|---|"]
    for case in sorted(FIRST_CASES, key=str):
        layer = make(case, name="layer")
        layer.build(*case.shapes)
        shared, whole = [], []
        for variable in layer.weights:
            layout, name = layouts[variable.path], variable.path.removeprefix("layer/")
            if layout is None:
                whole.append(f"`{name}`")
            else:
                axes = ", ".join("channels" if axis else "-" for axis in layout.axes)
                shared.append(f"`{name}` ({axes})")
        cells = (", ".join(names) or "none" for names in (shared, whole))
        lines.append(f"| `{case.layer}` | {' | '.join(cells)} |")
    spread = distribution.parallel(channels=4, devices=DEVICES)
    for name, make_network in NETWORKS.items():
        weights = make_network().weights
        numbers = [
            sum(math.prod(x.shape) for x in weights if chosen(spread.get_variable_layout(x)))
            for chosen in (lambda layout: any(layout.axes), lambda layout: True)
        ]
        share = 100 * numbers[0] / numbers[1]
        lines.append(f"| {name} | {share:.1f} % of the numbers | {100 - share:.1f} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    run = {"jax": on_jax, "tensorflow": on_tensorflow, "torch": on_torch}
    if sys.argv[1:]:
        run[keras.backend.backend()](Path(sys.argv[1]))
    else:
        pages.write_between(PAGE, MARKS, table())
