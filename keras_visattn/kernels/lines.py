"""What the loops share: how numba compiles them, and the exponential of a line of numbers.

numba keeps what it compiled, and sees no change of this file: delete its cache after one.
"""

import numba
import numpy as np
from numba.extending import intrinsic

HIDDEN, LOWEST = np.float32(-1e30), np.float32(-1e29)
LOG2_E, LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)

# NaN and infinity keep their meaning: only the order of sums is free.
compiled = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}
)


@numba.njit(inline="always")
def power_of_2(x):
    """2 to a power that is at most 0, to the rounding of float32; 0 for powers below -126.

    2 to a whole power adds to the exponent of 2 to what is left, between -1/2 and 1/2: the Taylor
    series of that.
    """
    bounded = np.float32(-126) if x < np.float32(-126) else x
    whole = np.floor(bounded + np.float32(0.5))
    rest = bounded - whole
    p = np.float32(1.3333558146428443e-3) + rest * np.float32(1.5403530393381609e-4)
    p = np.float32(9.618129107628477e-3) + rest * p
    p = np.float32(5.550410866482158e-2) + rest * p
    p = np.float32(2.402265069591007e-1) + rest * p
    p = np.float32(1) + rest * (LN_2 + rest * p)
    power = _float_of_bits(_bits_of_float(p) + (np.int32(whole) << np.int32(23)))
    return np.float32(0) if x < np.float32(-126) else power


@intrinsic
def _bits_of_float(typing, number):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(numba.int32))

    return numba.int32(numba.float32), generate


@intrinsic
def _float_of_bits(typing, number):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(numba.float32))

    return numba.float32(numba.int32), generate
