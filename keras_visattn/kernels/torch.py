"""PyTorch's fused attention, and loops for windows and for gates on the CPU."""

import functools
import math

import torch
from torch.nn import functional as nn
from torch.utils.checkpoint import checkpoint

from keras_visattn.kernels import gates, windows
from keras_visattn.kernels.loops import NO_LOOPS
from keras_visattn.kernels.torch_gates import refine as refine

# From which length on the loops beat the fused attention, for heads up to which size. The terms of
# rows and columns make the heads of the fused one longer.
LOOPS_WIN = (128, 16), (2048, 32)
LOOPS_WIN_WITH_TERMS = ((0, math.inf),)


def devices():
    """Names the devices."""
    count = torch.cuda.device_count()
    names = [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(count)]
    return names or [f"cpu ({torch.get_num_threads()} threads)"]


def not_distributed():
    """Says why Keras does not spread a model over devices, and what does."""
    return (
        "Keras must run on JAX to distribute: for PyTorch it has no `keras.distribution`. Wrap the "
        "model in `torch.nn.parallel.DistributedDataParallel`."
    )


def chosen():
    """Says for each kind of work what serves, and why."""
    fused = "scaled_dot_product_attention"
    heads, local, gated = fused, f"{fused} in tiles", "the formula"
    if torch.cuda.is_available():
        why = ": the loops are for the CPU"
    elif windows.loops() is None:
        why = f": {NO_LOOPS}"
    else:
        local, why = f"loops that numba compiles; {local} in compiled or traced programs", ""
        gated = f"loops that numba compiles, for maps of {gates.SMALLEST:,} numbers or more"
        heads = f"loops that numba compiles, for relative logits and small heads; {fused}"
    return {"attention": heads + why, "local attention": local + why, "CBAM": gated + why}


def fuses_attention():
    """PyTorch has a fused attention, which wants all terms of the logits in the heads."""
    return True


def fused_attention(query, key, value, mask, scale):
    """Averages the values as `ops.attention` does.

    Args:
        query: Tensor `(B, N, T, D)`.
        key: Tensor `(B, N, S, D)`.
        value: Tensor `(B, N, S, E)`.
        mask: Boolean tensor of four axes that broadcasts to `(B, N, T, S)`, or `None`.
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
    outputs = nn.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return outputs[..., :value_size]


def _padded(x, size):
    return nn.pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x


def in_loops(work, *tensors, otherwise, **settings):
    """Calls the loops of a module; the third tensor gives the dtype. Nothing asks for `otherwise`.

    Raises:
        NotImplementedError: If the tensors are not plain ones on the CPU or are of float64, if
            numba is not installed, or if PyTorch's own flash attention is switched off.
    """
    if (
        any(type(x) not in (torch.Tensor, torch.nn.Parameter) for x in tensors)
        or any(x.device.type != "cpu" for x in tensors)
        or any(x.dtype == torch.float64 for x in tensors)
        or any(x.numel() == 0 for x in tensors[:3])
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or not torch.backends.cuda.flash_sdp_enabled()
        or work.loops() is None
    ):
        raise NotImplementedError
    outputs, _ = _Loops.apply(work, settings, *(x.float() for x in tensors))
    return outputs.to(tensors[2].dtype)


class _Loops(torch.autograd.Function):
    @staticmethod
    def forward(work, settings, *tensors):
        results = [
            tensors[0].new_empty(shape) for shape in work.forward_shapes(*tensors, **settings)
        ]
        work.forward(*_arrays(*tensors, *results), **settings)
        return tuple(results)

    @staticmethod
    def setup_context(context, arguments, results):
        context.work, context.settings, *tensors = arguments
        context.mark_non_differentiable(results[1])
        context.save_for_backward(*tensors, *results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, upstream, _):
        tensors = *context.saved_tensors, upstream
        work, settings = context.work, context.settings
        shapes = work.backward_shapes(*tensors, **settings)
        gradients = [upstream.new_empty(shape) for shape in shapes]
        work.backward(*_arrays(*tensors, *gradients), **settings)
        return None, None, *gradients


def _arrays(*tensors):
    return [x.detach().numpy() for x in tensors]


def compiled(function):
    """Gives the function as it is: PyTorch's compiler takes seconds a shape."""
    return function


def fuses_operations():
    """Each operation runs by itself."""
    return False


def traces_for_export():
    """Whether a program is traced whose batch may have any size."""
    return True


def recomputed(function):
    """Gives a function whose intermediate results are computed again for the gradient."""
    return functools.partial(checkpoint, function, use_reentrant=False)


def scores_at_a_time():
    """No scores exist beside the fused kernel; what goes into it grows with them."""
    return 2**26


def tile_length():
    """The fused kernel wants some queries at a time, and fewer copies of the keys."""
    return 8


def inference(function, variables):
    """Gives a function of arrays that keeps nothing for gradients."""
    return torch.no_grad()(function)


def gradient_at(function, variables):
    """Gives a function that differentiates a score; see the one for JAX."""

    @torch.enable_grad()
    def differentiate(*inputs):
        passed = []

        def tap(x):
            passed.append(x.detach().requires_grad_())
            return passed[0]

        score = function(tap, *inputs)
        tensor = passed[0]
        if not score.requires_grad:  # it depends on nothing that could change
            return tensor.detach(), torch.zeros_like(tensor)
        (gradient,) = torch.autograd.grad(score, tensor, allow_unused=True, materialize_grads=True)
        return tensor.detach(), gradient

    return differentiate
