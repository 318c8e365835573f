"""The gradients of a layer from the autodiff of whichever backend Keras runs on."""

import keras
import numpy as np


def gradients(layer, inputs, factors, graph=False):
    """Differentiates `sum(layer(*inputs) * factors)`, in inference mode.

    Args:
        layer: Keras layer.
        inputs: List of arrays.
        factors: Array.
        graph: Boolean, whether TensorFlow does it in a graph. JAX always compiles.

    Returns:
        The gradients of the inputs and those of the trainable weights, two lists of arrays.
    """
    backend = keras.backend.backend()
    differentiate = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[backend]
    if graph and backend == "tensorflow":
        import tensorflow as tf

        differentiate = tf.function(differentiate, autograph=False)
    found = differentiate(layer, inputs, factors)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, found)


def _arguments(layer):
    return {"training": False} if layer._call_has_training_arg else {}


def _jax(layer, inputs, factors):
    import jax

    def loss(inputs, weights):
        fixed = [v.value for v in layer.non_trainable_variables]
        outputs, _ = layer.stateless_call(weights, fixed, *inputs, **_arguments(layer))
        return (outputs * factors).sum()

    weights = [w.value for w in layer.trainable_variables]
    tensors = [jax.numpy.asarray(x) for x in inputs]
    return list(jax.jit(jax.grad(loss, argnums=(0, 1)))(tensors, weights))


def _tensorflow(layer, inputs, factors):
    import tensorflow as tf

    tensors = [tf.convert_to_tensor(x) for x in inputs]
    weights = [w.value for w in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = tf.reduce_sum(layer(*tensors, **_arguments(layer)) * factors)
    groups = tape.gradient(loss, [tensors, weights], None, tf.UnconnectedGradients.ZERO)
    return [[tf.convert_to_tensor(g) for g in group] for group in groups]


def _torch(layer, inputs, factors):
    import torch

    device = keras.ops.convert_to_tensor(factors).device
    tensors = [torch.tensor(x, device=device, requires_grad=True) for x in inputs]
    weights = [w.value for w in layer.trainable_variables]
    loss = (layer(*tensors, **_arguments(layer)) * torch.tensor(factors, device=device)).sum()
    found = list(torch.autograd.grad(loss, [*tensors, *weights], materialize_grads=True))
    return [found[: len(tensors)], found[len(tensors) :]]


def answer_and_gradients(model, inputs, seed=4):
    """Gives a model's outputs, and how `sum(outputs * random factors)` moves with its weights.

    It answers in inference mode; under JAX all is one program.

    Returns:
        Two lists of arrays.
    """
    draw = np.random.default_rng(seed)

    def loss_of(outputs):
        outputs = keras.tree.flatten(outputs)
        factors = [draw.normal(size=x.shape).astype("float32") for x in outputs]
        products = [
            keras.ops.sum(keras.ops.multiply(x, f)) for x, f in zip(outputs, factors, strict=True)
        ]
        return sum(products), outputs

    weights = [w.value for w in model.trainable_variables]
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        fixed = [v.value for v in model.non_trainable_variables]

        def loss(weights, inputs):
            return loss_of(model.stateless_call(weights, fixed, inputs, training=False)[0])

        differentiate = jax.jit(jax.grad(loss, has_aux=True))
        gradients, outputs = differentiate(weights, inputs)
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss, outputs = loss_of(model(inputs, training=False))
        gradients = tape.gradient(loss, weights, None, tf.UnconnectedGradients.ZERO)
        gradients = [tf.convert_to_tensor(x) for x in gradients]
    else:
        import torch

        loss, outputs = loss_of(model(inputs, training=False))
        gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        outputs = [x.detach() for x in outputs]
    to_numpy = keras.ops.convert_to_numpy
    return [to_numpy(x) for x in outputs], [to_numpy(x) for x in gradients]


def gradient_twice(function, x):
    """Differentiates `sum(g ** 2)`, where `g` is the gradient of `sum(function(x) ** 2)`."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        first = jax.grad(lambda x: (function(x) ** 2).sum())
        return np.asarray(jax.jit(jax.grad(lambda x: (first(x) ** 2).sum()))(x))
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(function(x) ** 2)
            total = tf.reduce_sum(inner.gradient(loss, x) ** 2)
        return outer.gradient(total, x).numpy()
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    x = torch.tensor(x, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        (first,) = torch.autograd.grad((function(x) ** 2).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), x)
    return second.numpy()
