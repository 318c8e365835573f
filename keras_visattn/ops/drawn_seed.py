"""Random numbers of work that is cut into chunks, and done again for the gradient."""

import keras
from keras import ops


class DrawnSeed(keras.random.SeedGenerator):
    """A seed that was drawn before, and gives the same numbers each time.

    Args:
        first: Integer tensor, a scalar: one draw from a seed that moves on.
        second: Integer tensor, a scalar, such as the number of a chunk.
    """

    def __init__(self, first, second):  # without the variable of a generator that moves on
        self.seed = ops.stack([ops.cast(x, "uint32") for x in (first, second)])
        self._initial_seed = self.seed  # Keras on PyTorch tells by it that there is a seed

    def next(self, ordered=True):
        return self.seed


def draw(seed):
    """Draws an integer tensor, a scalar, from an integer or a `SeedGenerator`."""
    return keras.random.randint((), 0, 2**31 - 1, dtype="int32", seed=seed)
