"""Prints what `python -m keras_visattn` is asked for when something is slow or does not work."""

import importlib.metadata
import platform

import keras

import keras_visattn
from keras_visattn import kernels

PACKAGES = ("keras", "numpy", "numba")


def describe() -> str:
    """Describes the versions, the backend, its devices, and the kernels that serve, with why."""
    backend = keras.backend.backend()
    lines = [f"keras_visattn {keras_visattn.__version__}, Python {platform.python_version()}"]
    lines += [f"{name} {_version(name)}" for name in (*PACKAGES, backend)]
    lines += [f"backend: {backend}, devices: {', '.join(kernels.devices())}"]
    lines += [f"{work}: {kernel}" for work, kernel in kernels.chosen().items()]
    return "\n".join(lines)


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


if __name__ == "__main__":
    print(describe())
