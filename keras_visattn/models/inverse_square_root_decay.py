"""The learning rate of the Transformer (Vaswani et al., 2017)."""

import keras
from keras import ops

from keras_visattn.ops import checks
from keras_visattn.typing import Tensor


@keras.saving.register_keras_serializable(package="keras_visattn")
class InverseSquareRootDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Raises the learning rate in a straight line, then lets it fall with the root of the steps.

    `hidden_dim ** -0.5 * min(s ** -0.5, s * warmup_steps ** -1.5)`: it is highest at step
    `warmup_steps`. The paper counts the steps `s` from 1, Keras counts updates from 0: the
    first update, `step=0`, has `s=1`.

    Args:
        hidden_dim: Integer, channels of the model. The paper's d_model.
        warmup_steps: Integer, steps until the rate falls.

    Raises:
        ValueError: If an argument is not a positive integer.

    Reference:
        Vaswani et al., 2017, "Attention Is All You Need", section 5.3
        (https://arxiv.org/abs/1706.03762).

    Examples:
        >>> schedule = keras_visattn.models.InverseSquareRootDecay(512)
        >>> optimizer = keras.optimizers.Adam(schedule, beta_1=0.9, beta_2=0.98, epsilon=1e-9)
        >>> print(f"{float(schedule(3999)):.6f}")
        0.000699
    """

    def __init__(self, hidden_dim: int, warmup_steps: int = 4000) -> None:
        self.hidden_dim = checks.positive_integer("hidden_dim", hidden_dim)
        self.warmup_steps = checks.positive_integer("warmup_steps", warmup_steps)

    def __call__(self, step: int | Tensor) -> Tensor:
        s = ops.cast(step, "float32") + 1.0
        rate = ops.minimum(s**-0.5, s * self.warmup_steps**-1.5)
        return rate * self.hidden_dim**-0.5

    def get_config(self):
        return {"hidden_dim": self.hidden_dim, "warmup_steps": self.warmup_steps}
