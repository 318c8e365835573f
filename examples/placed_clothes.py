"""Coloured clothes on coloured textures, with the box that each lies in.

An article of Fashion-MNIST in a random colour lies somewhere on a piece of one of scikit-image's
pictures: where a network looks can be judged by the box.
"""

import numpy as np

SIDE = 56
PICTURES = ("brick", "grass", "gravel", "coffee", "chelsea", "rocket", "astronaut")


def backgrounds():
    """The pictures in [0, 1], in colour."""
    from skimage import data

    pictures = [getattr(data, name)() for name in PICTURES]
    pictures = [x if x.ndim == 3 else np.repeat(x[..., None], 3, axis=-1) for x in pictures]
    return [x.astype("float32") / 255 for x in pictures]


def place(articles, labels, count, seed):
    """Places the first articles on random pieces of the pictures.

    Args:
        articles: Array `(articles, 28, 28, 1)`, in [0, 1].
        labels: Array of integers, as many.
        count: Integer, how many at most.
        seed: Integer.

    Returns:
        Images `(count, 56, 56, 3)`; their labels; and their boxes `(count, 4)`, the first row and
        column of the article and those behind its last.
    """
    draw = np.random.default_rng(seed)
    count = min(count, len(articles))
    pictures = backgrounds()
    images = np.empty((count, SIDE, SIDE, 3), "float32")
    boxes = np.empty((count, 4), "int32")
    for index, article in enumerate(articles[:count]):
        picture = pictures[draw.integers(len(pictures))]
        row, column = (draw.integers(length - SIDE) for length in picture.shape[:2])
        tint = draw.uniform(0.5, 1, 3).astype("float32")
        images[index] = picture[row : row + SIDE, column : column + SIDE] * tint
        size = article.shape[0]
        top, left = draw.integers(SIDE - size + 1, size=2)
        color = draw.uniform(0.2, 1, 3).astype("float32")
        solid = np.clip(4 * article, 0, 1)
        under = images[index, top : top + size, left : left + size]
        under += solid * (article * color - under)
        rows, columns = (np.flatnonzero(solid[..., 0].max(axis=axis) > 0.5) for axis in (1, 0))
        boxes[index] = top + rows[0], left + columns[0], top + rows[-1] + 1, left + columns[-1] + 1
    return images, labels[:count], boxes


def inside(boxes, shape):
    """Gives masks `(count, height, width)` that are true inside the boxes."""
    top, left, bottom, right = boxes.T[:, :, None, None]
    rows, columns = np.ogrid[: shape[1], : shape[2]]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
