"""Gather and excite (Hu et al., 2018)."""

from typing import Unpack

import keras
from keras import ops

from keras_visattn.layers.image_layer import ImageGate
from keras_visattn.ops import checks
from keras_visattn.ops.windows import average_pool_2d, repeat_pixels
from keras_visattn.typing import ImageGateArguments, Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class GatherExcite(ImageGate):
    """Multiplies each pixel by a gate gathered from the neighbourhood around it.

    `gate = sigmoid(upsample(mlp(gather(x))))`. Without parameters, the gather is the average of
    windows of `2 * extent - 1` pixels, one every `extent`; with parameters, a chain of depthwise
    3x3 convolutions of stride 2, each with batch normalization. The upsampling repeats pixels.
    The paper's GE-theta-minus, GE-theta and GE-theta-plus are `parametric=False`,
    `parametric=True`, and both with `reduction_ratio=16`. From memory of the paper: the ReLU
    between the convolutions.

    Args:
        extent: `None` for the whole map, or an integer, the side of the area that shares a gate;
            a power of 2, from 2 on, if `parametric`.
        parametric: Boolean, whether the gather is learnt. Over the whole map it is one depthwise
            convolution of the map's size, which must then be known and stay the same.
        reduction_ratio: `None`, or an integer: two 1x1 convolutions, to
            `max(1, channels // reduction_ratio)` units with a ReLU and back, follow the gather.
        identity_start: Boolean. If `True`, the gate is `2 * sigmoid(...)` of logits that start at
            zero: a fresh layer returns its input exactly. It needs parameters. Not in the paper.
        **kwargs: `data_format`; `kernel_initializer` and the other initializer, regularizer and
            constraint arguments of `keras.layers.Conv2D`; those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor, a batch of maps.
        training: Boolean, whether batch normalization takes the batch's statistics.
        return_attention_scores: Boolean, whether to return the gate too.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` if
        `data_format="channels_first"`.

    Output shape:
        That of the input. The gate: the same, with height and width 1 if `extent=None`.

    Raises:
        ValueError: If `extent` is not positive, or no power of 2 where it must be; if the size of
            the map is unknown where it must be known; if `identity_start` has no parameters to
            start from.

    Reference:
        Hu et al., 2018, "Gather-Excite: Exploiting Feature Context in Convolutional Neural
        Networks", section 3 (https://arxiv.org/abs/1810.12348).

    Examples:
        >>> layer = keras_visattn.layers.GatherExcite(extent=4)
        >>> keras.ops.shape(layer(keras.random.normal((2, 8, 6, 32))))
        (2, 8, 6, 32)
    """

    def __init__(
        self,
        extent: int | None = None,
        parametric: bool = False,
        reduction_ratio: int | None = None,
        **kwargs: Unpack[ImageGateArguments],
    ) -> None:
        super().__init__(**kwargs)
        if extent is not None:
            checks.positive_integer("extent", extent)
            if parametric and (extent == 1 or extent & (extent - 1)):
                raise ValueError(
                    "`extent` must be a power of 2, from 2 on, if the gather is parametric. "
                    f"Received: extent={extent}"
                )
        if reduction_ratio is not None:
            checks.positive_integer("reduction_ratio", reduction_ratio)
        if self.identity_start and not parametric and reduction_ratio is None:
            raise ValueError(
                "`parametric` or `reduction_ratio` must be given with `identity_start`: a gate "
                "without parameters cannot start at one. Received: identity_start=True, "
                f"parametric={parametric}, reduction_ratio={reduction_ratio}"
            )
        self.extent = extent
        self.parametric = parametric
        self.reduction_ratio = reduction_ratio

    def build(self, input_shape):
        channels = self.accept(input_shape)
        batch, height, width, _ = self.image_shape(input_shape)
        self.gathers, self.gather_norms = self._build_gather(batch, height, width, channels)
        self.squeeze = self.excite = None
        if self.reduction_ratio is not None:
            hidden = max(1, channels // self.reduction_ratio)
            checks.weight("`reduction_ratio`", channels, hidden)
            last = self.kernel_arguments()
            if self.identity_start:
                last.update(kernel_initializer="zeros", bias_initializer="zeros")
            self.squeeze = keras.layers.Dense(
                hidden, activation="relu", name="squeeze", **self.kernel_arguments()
            )
            self.excite = keras.layers.Dense(channels, name="excite", **last)
            self.squeeze.build((batch, None, None, channels))
            self.excite.build((batch, None, None, hidden))

    def _build_gather(self, batch, height, width, channels):
        if not self.parametric:
            return [], []
        if self.extent is None and None in (height, width):
            raise ValueError(
                "A parametric gather over the whole map needs its height and width. "
                f"Received: height={height}, width={width}, extent={self.extent}"
            )
        if self.extent is None:
            checks.weight("`input_shape`", height, width, channels)
        steps = 1 if self.extent is None else self.extent.bit_length() - 1
        kernel = self.kernel_arguments()
        depthwise = {name.replace("kernel", "depthwise"): value for name, value in kernel.items()}
        gathers, norms = [], []
        for step in range(steps):
            starts_at_zero = (
                self.identity_start and self.reduction_ratio is None and step == steps - 1
            )
            convolution = keras.layers.DepthwiseConv2D(
                3 if self.extent else (height, width),
                strides=2 if self.extent else 1,
                padding="same" if self.extent else "valid",
                use_bias=False,
                data_format="channels_last",
                name=f"gather_{step}",
                **depthwise,
            )
            batch_norm = keras.layers.BatchNormalization(
                gamma_initializer="zeros" if starts_at_zero else "ones",
                epsilon=1e-5,
                dtype=self.dtype_policy,
                name=f"gather_{step}_batch_norm",
            )
            convolution.build((batch, height, width, channels))
            batch_norm.build((batch, None, None, channels))
            gathers.append(convolution)
            norms.append(batch_norm)
        return gathers, norms

    def gate(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes the gate alone."""
        x = self.to_channels_last(inputs)
        logits = self._gather(x, training)
        if self.squeeze is not None:
            logits = self.excite(self.squeeze(logits))
        gate = self.sigmoid(logits)
        if self.extent is not None:
            _, height, width, _ = ops.shape(x)
            gate = repeat_pixels(gate, self.extent, height, width)
        return self.from_channels_last(gate)

    def _gather(self, x, training):
        if not self.parametric:
            if self.extent is None:
                return ops.mean(x, axis=(1, 2), keepdims=True)
            return average_pool_2d(x, 2 * self.extent - 1, self.extent, before=self.extent - 1)
        for step, (convolution, norm) in enumerate(
            zip(self.gathers, self.gather_norms, strict=True)
        ):
            x = norm(convolution(x), training=training)
            if step < len(self.gathers) - 1:
                x = ops.relu(x)
        return x

    def compute_scores_shape(self, input_shape):
        batch, height, width, channels = self.image_shape(input_shape)
        if self.extent is None:
            height = width = 1
        return self.output_shape_of(batch, height, width, channels)

    def get_config(self):
        return {
            **super().get_config(),
            "extent": self.extent,
            "parametric": self.parametric,
            "reduction_ratio": self.reduction_ratio,
        }
