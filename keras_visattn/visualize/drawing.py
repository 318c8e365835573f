"""Draws maps over the images that they belong to."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from keras import ops

from keras_visattn.ops import checks
from keras_visattn.typing import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = 2.0  # the width of a column


class Panel(NamedTuple):
    """A column of the figure, or with a table a picture in its last row.

    Args:
        title: String.
        kind: `"overlay"`, maps over images; `"bars"`, a value a channel; `"matrix"`, queries by
            keys; `"table"`, one picture for all images.
        values: Array, with the images first but for a table.
    """

    title: str
    kind: str
    values: np.ndarray


def show(
    images: Tensor,
    maps: Tensor | Mapping[str, Tensor | Mapping[str, Tensor]],
    path: str | os.PathLike[str] | None = None,
    titles: Sequence[str] | None = None,
    query: tuple[int, int] | None = None,
    opacity: float = 0.5,
) -> "Figure":
    """Draws a row for each image: the image, and each map over it with its colour bar.

    Args:
        images: Array `(batch, height, width, channels)` of 1 or 3 channels, in any range.
        maps: Array `(batch, height, width)` as from `grad_cam`, of any size; a dictionary of such
            arrays by title; or what `attention_maps` gives. Attention is drawn head by head,
            gates of channels as bars, position tables as pictures in a row of their own.
        path: Path of the PNG file to write, or `None`.
        titles: List of strings, one for each image, or `None`.
        query: Pair of integers, the pixel of the images that was given to `attention_maps`; it is
            marked with a cross.
        opacity: Float in [0, 1], of the maps over the images.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the images have other axes, there are no maps, or a number of maps or of
            titles is not that of the images.
        ImportError: If matplotlib is not installed.

    Examples:
        >>> images = keras.random.uniform((2, 32, 32, 3))
        >>> maps = keras.random.uniform((2, 8, 8))
        >>> figure = keras_visattn.visualize.show(images, {"noise": maps}, titles=["one", "two"])
        >>> len(figure.axes)
        6
    """
    checks.fraction("opacity", opacity)
    images = _pictures(images)
    panels = _panels(maps)
    for title, kind, values in panels:
        if kind != "table" and len(values) != len(images):
            raise ValueError(
                "There must be a map for each image. "
                f"Received: {len(images)} images, {title}={values.shape}"
            )
    if titles is not None and len(titles) != len(images):
        raise ValueError(
            f"There must be a title for each image. Received: {len(images)} images, titles={titles}"
        )
    figure_class = _figure_class()
    tables = [panel for panel in panels if panel.kind == "table"]
    panels = [panel for panel in panels if panel.kind != "table"]
    rows, columns = len(images) + bool(tables), max(1 + len(panels), len(tables))
    height = 0.8 * INCHES * images.shape[1] / images.shape[2] + 0.3
    figure = figure_class(figsize=(INCHES * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for index, (image, row) in enumerate(zip(images, grid, strict=False)):
        row[0].imshow(image)
        row[0].set_title("" if titles is None else titles[index], fontsize="small")
        for axis, panel in zip(row[1:], panels, strict=False):
            shown = _draw(axis, panel, index, image, opacity)
            if shown is not None:
                figure.colorbar(shown, ax=axis, shrink=0.8)
            if index == 0:
                axis.set_title(panel.title, fontsize="small")
            if query is not None and panel.kind == "overlay":
                axis.plot(query[1], query[0], "x", color="white", markeredgewidth=2)
    for axis, panel in zip(grid[-1], tables, strict=False):
        figure.colorbar(axis.imshow(panel.values, aspect="auto", cmap="coolwarm"), ax=axis)
        axis.set_title(panel.title, fontsize="small")
    if path is not None:
        figure.savefig(path, dpi=100)
    return figure


def _figure_class():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "`show` needs matplotlib: pip install 'keras_visattn[visualize]'"
        ) from error
    return Figure


def _pictures(images):
    images = ops.convert_to_numpy(images).astype("float32")
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise ValueError(
            "`images` must have the axes (batch, height, width, channels), with 1 or 3 channels. "
            f"Received: images={images.shape}"
        )
    low, high = images.min(), images.max()
    if low < 0 or high > 1:
        images = images / 255 if low >= 0 and high <= 255 else (images - low) / (high - low)
    return np.repeat(images, 3 // images.shape[-1], axis=-1)


def _panels(maps):
    if not isinstance(maps, dict):
        maps = {"": maps}
    panels = []
    for title, found in maps.items():
        named = found if isinstance(found, dict) else {"": found}
        for name, values in named.items():
            values = ops.convert_to_numpy(values)
            panels += _panels_of(": ".join(filter(None, (title, name))), name, values)
    if not panels:
        raise ValueError(f"`maps` must hold at least one map. Received: maps={maps}")
    return panels


def _panels_of(title, name, values):
    if name in ("rows", "columns"):
        return [Panel(title, "table", values)]
    if name == "channel":
        return [Panel(title, "bars", values)]
    if name == "gate":
        return [Panel(f"{title}, mean", "overlay", values.mean(axis=-1))]
    if values.ndim == 3:
        return [Panel(title, "overlay", values)]
    if values.ndim != 4:
        raise ValueError(
            "A map must have the axes (batch, height, width), or be one of `attention_maps`. "
            f"Received: {title}={values.shape}"
        )
    kind = "overlay" if name == "keys" else "matrix"
    heads = range(values.shape[1])
    return [Panel(f"{title}, head {head + 1}", kind, values[:, head]) for head in heads]


def _draw(axis, panel, index, image, opacity):
    """Draws a panel for an image; gives what a colour bar can stand for."""
    values = panel.values[index]
    if panel.kind == "bars":
        axis.set_axis_on()
        axis.bar(np.arange(len(values)), values, width=1)
        return None
    if panel.kind == "matrix":
        return axis.imshow(values, cmap="viridis")
    height, width, _ = image.shape
    axis.imshow(image)
    return axis.imshow(
        values,
        alpha=opacity,
        cmap="jet",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest" if min(values.shape) < min(height, width) else None,
    )
