"""Channel and spatial gates in PyTorch, in loops on the CPU: three reads of the map, one write.

Differentiated once, the backward passes are loops too. To differentiate them again, PyTorch calls
them with its gradients on, and they are operations of PyTorch, whose gradients it knows.
"""

import torch

from keras_visattn.kernels import gates


def refine(inputs, channel_gate, pixel_gate):
    """Multiplies a map by a gate of its channels, and the product by a gate of its pixels.

    Args:
        inputs: Tensor `(B, H, W, C)`.
        channel_gate: Function of each channel's mean and largest value, `(B, C)` both, that gives
            `(B, 1, 1, C)`.
        pixel_gate: Function of the mean and the largest value of each pixel of the product,
            `(B, H, W)` both, that gives `(B, H, W, 1)`.

    Returns:
        The second product, and the list of both gates.

    Raises:
        NotImplementedError: If the map is not a plain tensor of float32 on the CPU, or is small,
            if PyTorch compiles, traces or transforms the program, or if numba is not installed.
    """
    if (
        type(inputs) not in (torch.Tensor, torch.nn.Parameter)
        or inputs.device.type != "cpu"
        or inputs.dtype != torch.float32
        or inputs.numel() < gates.SMALLEST
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or gates.loops() is None
    ):
        raise NotImplementedError
    batch, height, width, channels = inputs.shape
    maps = inputs.contiguous().reshape(batch, height * width, channels)
    handed_on, mean, largest, _ = _PoolPixels.apply(maps)
    by_channel = channel_gate(mean, largest).to(maps.dtype)
    gate = by_channel.reshape(batch, channels).contiguous()
    handed_on, *pooled = _PoolChannels.apply(handed_on, gate)
    by_pixel = pixel_gate(*(x.reshape(batch, height, width) for x in pooled)).to(maps.dtype)
    seen = handed_on if maps.requires_grad else maps
    outputs = _Multiply.apply(seen, gate, by_pixel.reshape(batch, height * width).contiguous())
    return outputs.reshape(inputs.shape), [by_channel, by_pixel]


# The functions that pool hand their map on: what follows takes it from there, so that its gradient
# comes back to them, and they add theirs while they write it.


class _PoolPixels(torch.autograd.Function):
    @staticmethod
    def forward(maps):
        results = [maps.new_empty(maps.shape[0], maps.shape[2]) for _ in range(3)]
        gates.pool_pixels(*_arrays(maps, *results))
        return maps.view_as(maps), *results

    @staticmethod
    def setup_context(context, arguments, outputs):
        context.mark_non_differentiable(outputs[-1])
        context.set_materialize_grads(False)
        context.save_for_backward(*arguments, *outputs[2:])

    @staticmethod
    def backward(context, upstream, to_mean, to_largest, _):
        maps, largest, counts = context.saved_tensors
        upstream = _zeros_for_none(upstream, maps)
        to_mean, to_largest = (_zeros_for_none(x, largest) for x in (to_mean, to_largest))
        if torch.is_grad_enabled():
            share = (maps == largest[:, None]) * (to_largest / counts)[:, None]
            return upstream + to_mean[:, None] / maps.shape[1] + share
        to_maps = torch.empty_like(maps)
        gates.pool_pixels_backward(
            *_arrays(maps, largest, counts, to_mean, to_largest, upstream, to_maps)
        )
        return to_maps


class _PoolChannels(torch.autograd.Function):
    @staticmethod
    def forward(maps, gate):
        results = [maps.new_empty(maps.shape[:2]) for _ in range(2)]
        gates.pool_channels(*_arrays(maps, gate, *results))
        return maps.view_as(maps), *results

    @staticmethod
    def setup_context(context, arguments, outputs):
        context.set_materialize_grads(False)
        context.save_for_backward(*arguments, outputs[-1])

    @staticmethod
    def backward(context, upstream, to_mean, to_largest):
        maps, gate, largest = context.saved_tensors
        to_mean, to_largest = (_zeros_for_none(x, largest) for x in (to_mean, to_largest))
        wants_map = context.needs_input_grad[0]
        upstream = _zeros_for_none(upstream, maps) if wants_map else None
        if torch.is_grad_enabled():
            equal = maps * gate[:, None] == largest[..., None]
            share = equal * (to_largest / equal.sum(-1))[..., None]
            slope = to_mean[..., None] / maps.shape[-1] + share
            to_maps = upstream + slope * gate[:, None] if wants_map else None
            return to_maps, (slope * maps).sum(1)
        to_maps = torch.empty_like(maps) if wants_map else None
        to_gate = torch.empty_like(gate)
        gates.pool_channels_backward(
            *_arrays(maps, gate, largest, to_mean, to_largest, upstream, to_maps, to_gate)
        )
        return to_maps, to_gate


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(maps, gate, pixel_gate):
        products = torch.empty_like(maps)
        gates.multiply(*_arrays(maps, gate, pixel_gate, products))
        return products

    @staticmethod
    def setup_context(context, arguments, outputs):
        context.save_for_backward(*arguments)

    @staticmethod
    def backward(context, upstream):
        maps, gate, pixel_gate = context.saved_tensors
        if torch.is_grad_enabled():
            by_channel, by_pixel, slope = gate[:, None], pixel_gate[..., None], upstream * maps
            return (
                upstream * by_channel * by_pixel,
                (slope * by_pixel).sum(1),
                (slope * by_channel).sum(2),
            )
        to_maps = torch.empty_like(maps) if context.needs_input_grad[0] else None
        gradients = to_maps, torch.empty_like(gate), torch.empty_like(pixel_gate)
        gates.multiply_backward(*_arrays(maps, gate, pixel_gate, upstream, *gradients))
        return gradients


def _zeros_for_none(gradient, tensor):
    return torch.zeros_like(tensor) if gradient is None else gradient


def _arrays(*tensors):
    return [None if x is None else x.detach().contiguous().numpy() for x in tensors]
