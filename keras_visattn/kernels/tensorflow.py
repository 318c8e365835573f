"""TensorFlow: its graphs run operation by operation unless XLA compiles them."""

import tensorflow as tf


def fused_attention(query, key, value, mask, scale):
    raise NotImplementedError("TensorFlow has no fused attention.")


def window_attention(query, key, value, row_table, column_table, window, otherwise):
    raise NotImplementedError("XLA has no kernel of windows.")


def compiled(function):
    """Compiles a function of tensors by XLA, and its gradient, which computes it again.

    Nothing but the tensors passes from one to the other: TensorFlow cannot hand the lists that a
    loop keeps from one compiled program to another. Eager calls would be compiled anew each time:
    they stay eager.
    """
    if tf.executing_eagerly():
        return function

    def differentiate(tensors, upstream):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        return tape.gradient(outputs, tensors, upstream, tf.UnconnectedGradients.ZERO)

    @tf.custom_gradient
    def call(*tensors):
        def gradient(upstream):
            return _xla(differentiate)(tensors, upstream)

        return _xla(function)(*tensors), gradient

    return call


def recomputed(function):
    """Gives a function whose intermediate results are computed again for the gradient."""
    return tf.recompute_grad(function)


def scores_at_a_time():
    """On a CPU, what its cache holds; on a GPU, what fills it."""
    return 2**28 if tf.config.list_physical_devices("GPU") else 2**20


def tile_length():
    """Small tiles waste few products, and the chunk stays in the cache."""
    return 4


def _xla(function):
    return tf.function(function, jit_compile=True, autograph=False)
