"""The two losses of RetinaNet (Lin et al., 2017), on targets of `ops.match_anchors`."""

from typing import Any

import keras
from keras import ops

from keras_visattn.ops import checks
from keras_visattn.typing import Tensor


def _by_objects(losses, positive):
    """Sums an image's losses and divides by its anchors that stand for an object."""
    count = ops.sum(ops.cast(positive, losses.dtype), axis=-1)
    return ops.sum(losses, axis=-1) / ops.maximum(count, 1.0)


@keras.saving.register_keras_serializable(package="keras_visattn")
class FocalLoss(keras.losses.Loss):
    """Trains the classes: a cross-entropy in which anchors that are already right weigh little.

    `-alpha_t (1 - p_t) ** gamma log(p_t)` for each anchor and class, where `p_t` is the
    probability of the truth and `alpha_t` is `alpha` for an object, `1 - alpha` for none. Summed
    over an image and divided by its number of anchors that stand for an object, or by 1. Keras
    computes it, with probabilities kept 1e-7 from 0 and 1.

    Args:
        alpha: Float in [0, 1], weight of the objects.
        gamma: Number, how fast the weight of an easy anchor falls.
        **kwargs: Keyword arguments of `keras.losses.Loss`.

    Call arguments:
        y_true: Integers `(batch, anchors)`: the class, -1 for background, -2 for ignored.
        y_pred: Logits `(batch, anchors, classes)`.

    Raises:
        ValueError: If `alpha` is not in [0, 1] or `gamma` is negative.

    Reference:
        Lin et al., 2017, "Focal Loss for Dense Object Detection", section 3
        (https://arxiv.org/abs/1708.02002).

    Examples:
        >>> loss = keras_visattn.models.FocalLoss()
        >>> labels = keras.ops.convert_to_tensor([[0, -1, -2]])
        >>> print(f"{float(loss(labels, keras.ops.zeros((1, 3, 2)))):.4f}")
        0.4332
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        name: str | None = "focal_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.alpha = checks.fraction("alpha", alpha)
        if not gamma >= 0:
            raise ValueError(f"`gamma` must not be negative. Received: gamma={gamma}")
        self.gamma = gamma

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels = ops.cast(y_true, "int32")
        classes = y_pred.shape[-1]
        losses = keras.losses.binary_focal_crossentropy(
            ops.one_hot(labels, classes, dtype=y_pred.dtype),
            y_pred,
            apply_class_balancing=True,
            alpha=self.alpha,
            gamma=self.gamma,
            from_logits=True,
        )
        losses = ops.where(labels == -2, 0.0, classes * losses)  # Keras averages over the classes
        return _by_objects(losses, labels >= 0)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="keras_visattn")
class SmoothL1Loss(keras.losses.Loss):
    """Trains the offsets of the boxes: absolute errors, squared where they are small.

    `0.5 e ** 2 / beta` where the error `e` is below `beta`, else `|e| - beta / 2`. Summed over the
    anchors of an image that stand for an object, and divided by their number, or by 1.

    Args:
        beta: Float, the error up to which squares are taken.
        **kwargs: Keyword arguments of `keras.losses.Loss`.

    Call arguments:
        y_true: Tensor `(batch, anchors, 5)`: the offsets, then 1 if the anchor stands for an
            object, else 0.
        y_pred: Tensor `(batch, anchors, 4)`.

    Raises:
        ValueError: If `beta` is not positive.

    Reference:
        Lin et al., 2017, "Focal Loss for Dense Object Detection", section 4
        (https://arxiv.org/abs/1708.02002).

    Examples:
        >>> loss = keras_visattn.models.SmoothL1Loss()
        >>> targets = keras.ops.convert_to_tensor([[[0.0, 0, 0, 0, 1], [9.0, 9, 9, 9, 0]]])
        >>> print(float(loss(targets, keras.ops.ones((1, 2, 4)))))
        2.0
    """

    def __init__(
        self, beta: float = 1.0, name: str | None = "smooth_l1_loss", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        if not beta > 0:
            raise ValueError(f"`beta` must be positive. Received: beta={beta}")
        self.beta = beta

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        positive = y_true[..., 4] > 0
        losses = keras.losses.huber(y_true[..., :4], y_pred, delta=self.beta) / self.beta
        losses = ops.where(positive, 4 * losses, 0.0)  # Keras averages over the coordinates
        return _by_objects(losses, positive)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}
