"""Trains a small model on one device and on several, for `test_distribution.py` to compare.

`KERAS_BACKEND=jax python tests/spread_models.py FOLDER` writes `one.npz` and files of other names,
each with the losses of two steps of training and the predictions after them.
"""

import os
import sys
from pathlib import Path

import keras
import numpy as np

from keras_visattn import distribution, layers, models

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


def transformer():
    return models.Transformer(20, 1, 16, 32, num_heads=4, dropout=0.0)


def train(make, inputs, targets):
    """Gives the losses of two steps, and what the model answers then."""
    keras.utils.set_random_seed(3)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    losses = [model.train_on_batch(inputs, targets) for _ in range(2)]
    return {"losses": np.array(losses), "outputs": model.predict(inputs, verbose=0)}


def train_on_images():
    return train(attention_network, IMAGES, CLASSES)


def train_on_tokens():
    return train(transformer, list(TOKENS[:2]), TOKENS[2])


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
    for name, ways in (("data", {}), ("rows", {"rows": 4}), ("channels", {"channels": 4})):
        keras.distribution.set_distribution(distribution.parallel(**ways))
        np.savez(folder / f"{name}.npz", **train_on_images())
    keras.distribution.set_distribution(distribution.parallel(channels=4))
    np.savez(folder / "heads_transformer.npz", **train_on_tokens())


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
    losses = []
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
        np.savez(Path(folder) / "processes.npz", losses=losses, outputs=outputs)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run = {"jax": on_jax, "tensorflow": on_tensorflow, "torch": on_torch}
    run[keras.backend.backend()](Path(sys.argv[1]))
