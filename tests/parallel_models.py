"""A model with every attention, and what `test_parallel.py` does with it in threads and processes.

A process that is spawned imports this file by its name.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from keras_visattn.kernels import attention, blocks, gates, windows

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from soak import network

SIZES = ((24, 24), (32, 20), (28, 36))  # from 128 keys on, loops serve everywhere


def images_of(number, batch=2):
    draw = np.random.default_rng(number)
    return draw.normal(size=(batch, *SIZES[number], 3)).astype("float32")


def made(dropout=0.0):
    """Makes the model; on TensorFlow without XLA, so that the loops serve there too."""
    model = network("attention", dropout)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    jit_compile = keras.backend.backend() == "jax"
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=jit_compile)
    return model


def predictions(model):
    return [model.predict(images_of(number), verbose=0) for number in range(len(SIZES))]


def served(model):
    """Gives a function of nothing that predicts, and that several threads may call."""
    if keras.backend.backend() != "jax":
        return lambda: predictions(model)
    import jax  # `model.predict` takes the weights out of the model while it works

    variables = [
        [variable.value for variable in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    call = jax.jit(lambda *arguments: model.stateless_call(*arguments, training=False)[0])
    return lambda: [np.array(call(*variables, images_of(n))) for n in range(len(SIZES))]


def trained(model, shuffle=True):
    """Trains for two epochs of three steps; gives the losses and the weights."""
    examples = images_of(0, 6), np.arange(6)
    fitted = model.fit(*examples, batch_size=2, epochs=2, shuffle=shuffle, verbose=0)
    return [np.array(fitted.history["loss"]), *model.get_weights()]


def loops():
    """Calls the loops of every kind, forward and backward; gives all that they write."""
    draw = np.random.default_rng(0)

    def sample(*shape):
        return draw.normal(size=shape).astype("float32")

    maps, tables = [sample(1, 40, 40, 2, 8) for _ in range(3)], [sample(3, 4), sample(3, 4)]
    heads = [sample(1, 2, 200, 8) for _ in range(3)]
    works = (
        (windows, [*maps, *tables], {"window": ((3, 3), (1, 1), (1, 1))}),
        (blocks, maps, {"block": (4, 4)}),
        (attention, heads, {"scale": 0.3}),
    )
    written = []
    for work, tensors, settings in works:
        written += called(work, tensors, settings)
    pixels = sample(2, 2000, 8)
    pooled = arrays(3 * [(2, 8)])
    gates.pool_pixels(pixels, *pooled)
    return [*written, *pooled]


def called(work, tensors, settings):
    """Calls the loops of a module of kernels, forward and backward; gives all that they write."""
    results = arrays(work.forward_shapes(*tensors, **settings))
    work.forward(*tensors, *results, **settings)
    upstream = np.random.default_rng(5).normal(size=results[0].shape).astype("float32")
    arguments = *tensors, *results, upstream
    gradients = arrays(work.backward_shapes(*arguments, **settings))
    work.backward(*arguments, *gradients, **settings)
    return [*results, *gradients]


def arrays(shapes):
    return [np.empty(shape, "float32") for shape in shapes]


def send(connection, function, *arguments):
    """Sends what a function gives to the process that started this one."""
    connection.send(function(*arguments))
    connection.close()


def load_and_predict(path):
    return predictions(keras.saving.load_model(path))


def in_child(method, function, *arguments, seconds=200):
    """Calls a function in another process, and gives what it returns; one that hangs is ended.

    Args:
        method: "spawn" or "fork".
    """
    import multiprocessing

    context = multiprocessing.get_context(method)
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=send, args=(theirs, function, *arguments))
    child.start()
    theirs.close()
    try:
        if not mine.poll(seconds):
            raise TimeoutError(f"The process did not answer within {seconds} seconds.")
        return mine.recv()  # EOFError if it failed
    finally:
        child.kill()
        child.join()
