"""Figures for pages that have a light and a dark scheme."""

import matplotlib.style
from matplotlib import rc_context

STYLES = {"light": "default", "dark": "dark_background"}


def draw_in_schemes(draw, folder, name):
    """Calls `draw` once a scheme; what it returns is written to `NAME-light` and `NAME-dark`.

    Args:
        draw: Function without arguments that gives a `matplotlib.figure.Figure`.
        folder: `pathlib.Path`.
        name: String, with the suffix of its format: `"figure.svg"`.
    """
    stem, _, suffix = name.rpartition(".")
    # The page's own background shows, and the same figure is the same file.
    settings = {"savefig.transparent": True, "svg.hashsalt": stem, "savefig.dpi": 120}
    for scheme, style in STYLES.items():
        with matplotlib.style.context(style), rc_context(settings):
            metadata = {"Date": None} if suffix == "svg" else None
            draw().savefig(folder / f"{stem}-{scheme}.{suffix}", metadata=metadata)
