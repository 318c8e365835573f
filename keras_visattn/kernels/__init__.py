"""What beats the ops on a backend. The only folder that names a backend.

Each module has the same names. `fused_attention` computes what `ops.attention` computes, or raises
`NotImplementedError` before it computes, and then the op's own formula serves; so does
`attention_in_loops`, whose loops are in `attention`. `window_attention` and `block_attention` do so
for `ops.local_attention_2d` and `ops.block_attention_2d`; the loops are in `windows` and `blocks`.
`refine` does so for the channel and spatial gates of CBAM; the loops behind it are in `gates`.
`compiled` hands a function of tensors to the backend's compiler where that pays; `fuses_operations`
says whether one fuses the formulas' operations. `recomputed` keeps nothing for the gradient.
`traces_for_export` is for programs whose sizes are unknown until they run. `scores_at_a_time` is
how many scores a chunk of work may make, `tile_length` how many pixels a side of a tile has at
least; their effect is what `examples/benchmark.py` measures.

`inference` and `gradient_at` run a model, and differentiate it at a tensor inside it, by the
backend's own means. `devices` names what the backend runs on, `chosen` what serves there, and why;
`not_distributed` says why Keras does not spread a model over several, and what does.
"""

import importlib

import keras

from keras_visattn.kernels import attention, blocks, windows

_kernels = importlib.import_module(f"{__name__}.{keras.backend.backend()}")

fuses_attention = _kernels.fuses_attention
fused_attention = _kernels.fused_attention
refine = _kernels.refine
chosen = _kernels.chosen
compiled = _kernels.compiled
devices = _kernels.devices
not_distributed = _kernels.not_distributed
fuses_operations = _kernels.fuses_operations
recomputed = _kernels.recomputed
scores_at_a_time = _kernels.scores_at_a_time
traces_for_export = _kernels.traces_for_export
tile_length = _kernels.tile_length
inference = _kernels.inference
gradient_at = _kernels.gradient_at


def window_attention(query, key, value, row_table, column_table, window, otherwise):
    """Attends from each pixel to its window; arguments as of `windows.forward`, and one more.

    Args:
        otherwise: Function of the tensors that does the same in operations of the backend, for
            where a program turns out to have no use for the loops after they were chosen.

    Raises:
        NotImplementedError: If the backend cannot call the loops here.
    """
    tensors = query, key, value, row_table, column_table
    return _kernels.in_loops(windows, *tensors, window=window, otherwise=otherwise)


def block_attention(query, key, value, block, otherwise):
    """Attends from each pixel to its block; arguments as of `blocks.forward`, and `otherwise`.

    Raises:
        NotImplementedError: As of `window_attention`.
    """
    return _kernels.in_loops(blocks, query, key, value, block=block, otherwise=otherwise)


def attention_in_loops(query, key, value, terms, scale, otherwise, any_shape):
    """Averages the values as `ops.attention` does, the terms of rows and columns beside the heads.

    Args:
        otherwise: As of `window_attention`, a function of `(query, key, value, *terms)`.
        any_shape: Boolean, whether to serve also where something else is faster.

    Raises:
        NotImplementedError: As of `window_attention`, and where something else is faster.
    """
    rule = _kernels.LOOPS_WIN_WITH_TERMS if terms else _kernels.LOOPS_WIN
    if not (any_shape or attention.pays(query, key, value, rule)):
        raise NotImplementedError
    tensors = query, key, value, *terms
    return _kernels.in_loops(attention, *tensors, scale=scale, otherwise=otherwise)
