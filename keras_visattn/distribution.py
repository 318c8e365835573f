"""Spreads a model over devices: the batch, the rows of its maps, the heads and channels."""

from collections.abc import Sequence

import keras

from keras_visattn import kernels
from keras_visattn.ops import checks

AXES = ("batch", "rows", "channels")
SHARDED = {  # what a variable's path ends with, and which of its axes is shared out
    r"(query|key|value|gate)/kernel": (1, 3),  # heads
    r"(query|key|value|gate)/bias": (0, 2),
    r"attention_output/kernel": (0, 3),
    r"(expand|squeeze|projection|predictions)/kernel": (1, 2),  # the channels that come out
    r"expand/bias": (0, 1),
    r"(shrink|excite|combination)/kernel": (0, 2),  # the channels that go in
    r"(\w*conv|convolution|spatial_\d|pyramid_\w+|boxes_\w+|classes_\w+)/kernel": (3, 4),
    r"gather_\d/kernel": (2, 4),
    r"embedding/embeddings": (1, 2),
}


def layout_map(
    device_mesh: keras.distribution.DeviceMesh, axis: str = "channels"
) -> keras.distribution.LayoutMap:
    """Makes the layouts of the variables of all networks and layers of this package.

    `MultiHeadAttention`, and with it the blocks of the Transformer, is shared out by heads, each
    other kernel by the channels that come out of it, or by those that go in where the kernel
    before it was shared out so. The rest is on all devices: biases, normalizations, relative
    tables. A layout whose axis the devices do not divide is an error with
    `keras.distribution.ModelParallel`; `parallel` puts such a variable on all devices.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`.
        axis: String, the mesh's axis over which heads and channels are shared out.

    Returns:
        A `keras.distribution.LayoutMap`, to which more layouts may be added.

    Raises:
        NotImplementedError: If Keras does not distribute on this backend.
        ValueError: If the mesh has no such axis.
    """
    _check_backend()
    checks.choice("axis", axis, tuple(device_mesh.axis_names))
    layouts = keras.distribution.LayoutMap(device_mesh)
    for pattern, (sharded, rank) in SHARDED.items():
        axes = [axis if place == sharded else None for place in range(rank)]
        layouts[rf"(.*/)?{pattern}"] = keras.distribution.TensorLayout(axes, device_mesh)
    return layouts


def parallel(
    channels: int = 1, rows: int = 1, devices: Sequence[str] | None = None
) -> keras.distribution.ModelParallel:
    """Makes a distribution over devices, for `keras.distribution.set_distribution`.

    `channels` devices share the heads and channels of every layer, as `layout_map` says, `rows`
    devices the rows of each image, and each group of `channels * rows` devices takes a part of
    every batch. What the devices do not divide is on all of them: a variable, or the rows of an
    image. The answers are those of one device but for rounding: XLA moves what the windows of
    one device need of another's rows.

    Either `channels` or `rows`: where the rows of a map and the channels that come out of a kernel
    are both shared out, XLA (that of JAX 0.10.2) convolves wrongly, in silence.

    Args:
        channels: Integer, devices that share heads and channels.
        rows: Integer, devices that share the rows of an image.
        devices: List of strings as of `keras.distribution.list_devices()`, which is the default.

    Returns:
        A `keras.distribution.ModelParallel`. Models that are made while it is set are spread.

    Raises:
        NotImplementedError: If Keras does not distribute on this backend.
        ValueError: If `channels` and `rows` are both above 1, or do not divide the number of
            devices.

    Reference:
        Xu et al., 2021, "GSPMD" (https://arxiv.org/abs/2105.04663).
    """
    _check_backend()
    checks.positive_integer("channels", channels)
    checks.positive_integer("rows", rows)
    if channels > 1 and rows > 1:
        raise ValueError(
            "`channels` and `rows` must not both be above 1: XLA convolves wrongly then. "
            f"Received: channels={channels}, rows={rows}"
        )
    devices = keras.distribution.list_devices() if devices is None else list(devices)
    groups, rest = divmod(len(devices), channels * rows)
    if rest or not groups:
        raise ValueError(
            "`channels * rows` must divide the number of devices. "
            f"Received: channels={channels}, rows={rows}, {len(devices)} devices"
        )
    mesh = keras.distribution.DeviceMesh((groups, rows, channels), AXES, devices)
    return _Parallel(layout_map=layout_map(mesh), batch_dim_name="batch")


class _Parallel(keras.distribution.ModelParallel):
    """Shares out what the devices divide."""

    def get_variable_layout(self, variable):
        return self._divided(super().get_variable_layout(variable), variable.shape)

    def get_data_layout(self, data_shape):
        axes = [None] * len(data_shape)
        axes[:1] = ["batch"][: len(axes)]
        if len(axes) == 4:
            axes[1 if keras.config.image_data_format() == "channels_last" else 2] = "rows"
        layout = keras.distribution.TensorLayout(axes, self.device_mesh)
        return self._divided(layout, (None, *data_shape[1:]))

    def _divided(self, layout, shape):
        """Leaves of a layout the axes that the devices divide; the batch must be one of them."""
        counts = dict(zip(self.device_mesh.axis_names, self.device_mesh.shape, strict=True))
        axes = [
            axis
            if axis and (size is None or (counts[axis] > 1 and size % counts[axis] == 0))
            else None
            for axis, size in zip(layout.axes, shape, strict=False)
        ]
        axes += [None] * (len(shape) - len(axes))
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def _check_backend():
    reason = kernels.not_distributed()
    if reason is not None:
        raise NotImplementedError(f"{reason} Received: backend {keras.backend.backend()}")
