"""Finds the modules of loops that numba compiles."""

import functools
import importlib

NO_LOOPS = "numba is not installed, or finds no folder for its cache"


@functools.cache
def find(name):
    """Gives a module of loops by its name; a first one takes a second to import.

    `None` where numba is missing, or finds no folder for what it compiles.
    """
    try:
        return importlib.import_module(f"keras_visattn.kernels.{name}")
    except (ImportError, RuntimeError):
        return None
