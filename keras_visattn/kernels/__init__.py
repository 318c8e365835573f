"""What beats the ops on a backend. The only folder that names a backend.

Each module has the same names. `fused_attention` computes what `ops.attention` computes, or raises
`NotImplementedError` before it computes, and then the op's own formula serves; so does
`attention_in_loops`, whose loops are in `attention`. `window_attention` and `block_attention` do so
for `ops.local_attention_2d` and `ops.block_attention_2d`; the loops are in `windows` and `blocks`.
`refine` does so for the channel and spatial gates of CBAM; the loops behind it are in `gates`.
`compiled` hands a function of tensors to the backend's compiler where that pays; `fuses_operations`
says whether one fuses the formulas' operations. `recomputed` keeps nothing for the gradient
(`keras.remat`, which Keras has since 3.9). `known_size` and `traces_for_export` are for programs
whose sizes are unknown until they run. `scores_at_a_time` is how many scores a chunk of work may
make, `tile_length` how many pixels a side of a tile has at least; their effect is what
`examples/benchmark.py` measures.

`inference` and `gradient_at` run a model, and differentiate it at a tensor inside it, by the
backend's own means. `devices` names what the backend runs on, `chosen` what serves there, and why;
`not_distributed` says why Keras does not spread a model over several, and what does.
"""

import importlib

import keras

_kernels = importlib.import_module(f"{__name__}.{keras.backend.backend()}")

fuses_attention = _kernels.fuses_attention
fused_attention = _kernels.fused_attention
attention_in_loops = _kernels.attention_in_loops
window_attention = _kernels.window_attention
block_attention = _kernels.block_attention
refine = _kernels.refine
chosen = _kernels.chosen
compiled = _kernels.compiled
devices = _kernels.devices
not_distributed = _kernels.not_distributed
fuses_operations = _kernels.fuses_operations
recomputed = _kernels.recomputed
scores_at_a_time = _kernels.scores_at_a_time
known_size = _kernels.known_size
traces_for_export = _kernels.traces_for_export
tile_length = _kernels.tile_length
inference = _kernels.inference
gradient_at = _kernels.gradient_at
