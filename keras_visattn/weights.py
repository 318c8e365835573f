"""Loads weights files wholly or not at all, and PyTorch's checkpoints of residual networks."""

import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

# Our name of a variable, and theirs of an entry.
VARIABLES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# Our name of what an attention layer holds, and theirs: the CBAM paper's authors', and timm's.
AUTHORS_CBAM = {
    "channel/squeeze": "cbam.ChannelGate.mlp.1",
    "channel/excite": "cbam.ChannelGate.mlp.3",
    "spatial/convolution": "cbam.SpatialGate.spatial.conv",
    "spatial/batch_norm": "cbam.SpatialGate.spatial.bn",
}
TIMM_CBAM = {
    "channel/squeeze": "se.channel.fc1",
    "channel/excite": "se.channel.fc2",
    "spatial/convolution": "se.spatial.conv.conv",
    "spatial/batch_norm": "se.spatial.conv.bn",
}
TIMM_SE = {"channel/squeeze": "se.fc1", "channel/excite": "se.fc2"}


def load_checkpoint(
    model: keras.Model, path: str | os.PathLike[str], skip: str | Sequence[str] = ()
) -> None:
    """Gives a residual network the weights and statistics of a PyTorch checkpoint.

    It reads the CBAM authors' ResNets, timm's ResNets and ResNeXts, plain, with `se` or with
    `cbam`, and any other checkpoint with torchvision's names. Only tensors are read: a file that
    holds anything which could run is refused.

    Args:
        model: What `models.ResNet` makes, with `attention=None`, `"se"` or `"cbam"`, for
            three-channel images of any size. timm's CBAM has no biases: `use_bias=False`.
        path: String or `Path` of a `.safetensors` file, or of a `.pth`, `.pt`, `.tar` or `.bin`
            file of PyTorch's, on disk.
        skip: String or tuple of strings, patterns of entries that are not to be loaded, such as
            `"fc.*"` for a model with other classes or without them.

    Raises:
        ValueError: If the file is truncated, of another kind, or holds more than tensors; if an
            entry is missing, unexpected or of another shape; or if the model is no such network.
            The model is as before then.
        ImportError: If safetensors, or PyTorch for its own files, is not installed.

    Reference:
        Woo et al., 2018, "CBAM: Convolutional Block Attention Module"
        (https://arxiv.org/abs/1807.06521).

    Examples:
        >>> model = keras_visattn.models.ResNet(18, "cbam", filters=16)
        >>> keras_visattn.weights.load_checkpoint(
        ...     model, "no_such_file.pth"
        ... )  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileNotFoundError: `path` must be a file.
    """
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    entries = _entries(Path(path))
    authors = any(".ChannelGate." in name for name in entries)
    pairs = {_entry_of(layer, v, authors): v for layer in model.layers for v in layer.weights}
    pairs, entries = (
        {name: value for name, value in named.items() if not _matches(name, skip)}
        for named in (pairs, entries)
    )
    values = {
        name: _converted(entries[name], variable, authors)
        for name, variable in pairs.items()
        if name in entries
    }
    shapes = {name: tuple(pairs[name].shape) for name in values}
    problems = {
        "missing": sorted(pairs.keys() - entries),
        "unexpected": sorted(entries.keys() - pairs),
        "mismatched": [
            f"{name}: {value.shape} for {shapes[name]}"
            for name, value in values.items()
            if value.shape != shapes[name]
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {names}" for kind, names in problems.items() if names)
        raise ValueError(
            f"The checkpoint must hold the weights of `model`. Received: {path}, "
            f"model={model.name}; {found}"
        )
    for name, value in values.items():
        pairs[name].assign(value)


def load_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Loads what `model.save_weights` or `model.save` wrote, all of it or nothing.

    `model.load_weights` of Keras loads layer by layer, and raises at the end: of a damaged file it
    has loaded what could be read. Here the model, its optimizer and its metrics are as before then.

    Args:
        model: `keras.Model`, built.
        path: String or `Path` of a `.weights.h5`, `.weights.json` or `.keras` file.

    Raises:
        ValueError: If a layer's arrays are missing, damaged or of another shape.
        OSError: If the file is missing, truncated or of another kind.

    Examples:
        >>> model = keras_visattn.models.ResNet(18, "cbam", filters=16)
        >>> keras_visattn.weights.load_weights(
        ...     model, "no_such_file.weights.h5"
        ... )  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileNotFoundError: Unable to synchronously open file
    """
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer is not None else ())]
    before = [np.array(keras.ops.convert_to_numpy(x.value)) for x in variables]
    try:
        model.load_weights(path)
    except BaseException:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        raise


def _matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _entries(path):
    """Reads a file's tensors by name."""
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a file. Received: path={str(path)!r}")
    reader = _read_safetensors if path.suffix == ".safetensors" else _read_pytorch
    try:
        state = reader(path)
        for holder in ("state_dict", "model"):
            if isinstance(state.get(holder), dict):
                state = state[holder]
        state = {name: _array(value) for name, value in state.items()}
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            "`path` must be a whole checkpoint that holds tensors and nothing that could run. "
            f"Received: path={str(path)!r} ({type(error).__name__}: {error})"
        ) from error
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}


def _read_safetensors(path):
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise _missing("safetensors", path) from error
    return load_file(path)


def _read_pytorch(path):
    try:
        import torch
    except ImportError as error:
        raise _missing("PyTorch", path) from error
    return torch.load(path, map_location="cpu", weights_only=True)


def _missing(package, path):
    return ImportError(
        f"{package} must be installed to read this file: `pip install 'keras_visattn[weights]'`. "
        f"Received: path={str(path)!r}"
    )


def _array(value):
    return value.detach().float().numpy() if hasattr(value, "detach") else np.asarray(value)


def _entry_of(layer, variable, authors):
    """Names the entry that a variable of a layer is loaded from."""
    *inner, name = variable.path.rpartition(f"{layer.name}/")[-1].split("/")
    module = _module_of(layer.name, "/".join(inner), authors)
    if module is None or name not in VARIABLES:
        raise ValueError(
            '`model` must be a residual network of `models.ResNet`, plain or with "se" or '
            f'"cbam". Received: a layer {layer.name} with {variable.path}'
        )
    return f"{module}.{VARIABLES[name]}"


def _module_of(name, inner, authors):
    if name == "predictions":
        return "fc"
    if name in ("stem_conv", "stem_bn"):
        return f"{name.removeprefix('stem_')}1"
    match = re.fullmatch(r"stage(\d)_block(\d+)_(\w+?)(?:_(conv|bn))?", name)
    if match is None:
        return None
    stage, block, part, kind = match.groups()
    if part == "shortcut":
        within = {"conv": "downsample.0", "bn": "downsample.1"}.get(kind)
    elif kind is not None:
        within = f"{kind}{part}"
    else:
        names = {"se": TIMM_SE, "cbam": AUTHORS_CBAM if authors else TIMM_CBAM}
        within = names.get(part, {}).get(inner)
    return None if within is None else f"layer{stage}.{int(block) - 1}.{within}"


def _converted(value, variable, authors):
    """Turns PyTorch's order of axes, (out, in, height, width), into Keras'."""
    if len(variable.shape) == 2 and set(value.shape[2:]) <= {1}:
        return value.reshape(value.shape[:2]).T  # some projections are 1x1 convolutions
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
        if authors and variable.path.endswith("spatial/convolution/kernel"):
            value = value[:, :, ::-1]  # the authors put the maximum before the mean
    return value
