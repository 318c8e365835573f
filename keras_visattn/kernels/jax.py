"""JAX: XLA fuses the formulas of `ops` itself."""

import jax


def fused_attention(query, key, value, mask, scale):
    raise NotImplementedError("XLA fuses the formula: no kernel was measured to beat it.")


def window_attention(query, key, value, row_table, column_table, window):
    raise NotImplementedError("XLA has no kernel of windows.")


def compiled(function):
    """Gives the function as it is: Keras compiles the whole model."""
    return function


def recomputed(function):
    """Gives a function whose intermediate results are computed again for the gradient."""
    return jax.checkpoint(function)


def scores_at_a_time():
    """On a CPU, what its cache holds; elsewhere, what fills the device."""
    return 2**20 if jax.default_backend() == "cpu" else 2**28


def tile_length():
    """Small tiles waste few products, and the chunk stays in the cache."""
    return 4
