"""PyTorch's fused attention: no tensor of scores, forward or backward."""

import functools

import torch
from torch.nn import functional as nn
from torch.utils.checkpoint import checkpoint


def fused_attention(query, key, value, mask, scale):
    """Averages the values as `ops.attention` does.

    Args:
        query: Tensor `(B, N, T, D)`.
        key: Tensor `(B, N, S, D)`.
        value: Tensor `(B, N, S, E)`.
        mask: Boolean tensor that broadcasts to `(B, N, T, S)`, or `None`.
        scale: Float.

    Returns:
        Tensor `(B, N, T, E)`.

    Raises:
        NotImplementedError: If the tensors are symbolic.
    """
    if not all(isinstance(x, torch.Tensor) for x in (query, key, value)):
        raise NotImplementedError
    size, value_size = query.shape[-1], value.shape[-1]
    # The fused kernels want heads of one size; zeros change no product and no average.
    query, key, value = (_padded(x, max(size, value_size)) for x in (query, key, value))
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    outputs = nn.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return outputs[..., :value_size]


def _padded(x, size):
    return nn.pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x


def compiled(function):
    """Gives the function as it is: PyTorch's compiler takes seconds a shape."""
    return function


def recomputed(function):
    """Gives a function whose intermediate results are computed again for the gradient."""
    return functools.partial(checkpoint, function, use_reentrant=False)


def scores_at_a_time():
    """No scores exist beside the fused kernel; what goes into it grows with them."""
    return 2**26


def tile_length():
    """The fused kernel wants some queries at a time, and fewer copies of the keys."""
    return 8
