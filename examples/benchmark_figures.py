"""Draws what `benchmark.py` measured: time and memory against the map and against the window.

`python examples/benchmark_figures.py docs/benchmarks/cpu.json --write docs/benchmarks` draws the
figures that the records of a file allow.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure
from schemes import draw_in_schemes


def draw_all(rows, folder):
    """Draws a figure against the side of the map and one against that of the window."""
    for axis in ("side", "kernel_size"):
        chosen = [row for row in rows if row["axis"] == axis and "error" not in row]
        for memory in (False, True):
            shown = [row for row in chosen if (row["group"] == "memory") == memory]
            if shown:
                name = f"{'memory' if memory else 'time'}-{axis}.svg"
                draw_in_schemes(lambda shown=shown, axis=axis: draw(shown, axis), folder, name)


def draw(rows, axis):
    """A column a backend, a line a subject."""
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    figure = Figure(figsize=(3.4 * len(backends), 3.4), layout="constrained")
    grid = figure.subplots(1, len(backends), sharey=True, squeeze=False)[0]
    memory = rows[0]["group"] == "memory"
    for place, backend in zip(grid, backends, strict=True):
        lines = {}
        for row in rows:
            if row["backend"] == backend:
                value = row["peak_bytes"] / 2**20 if memory else 1e3 * row["median_s"]
                lines.setdefault(row["subject"], {})[row[axis]] = value
        for subject, points in lines.items():
            place.loglog(list(points), list(points.values()), "o-", label=subject)
        marks = sorted({row[axis] for row in rows})
        place.set_xticks(marks, marks)
        place.set_xticks([], minor=True)
        place.set_title(backend, fontsize=10)
    grid[0].set_ylabel("MiB a training step" if memory else "ms a training step")
    batch, height, width, channels = rows[0]["shape"]
    size = f"{height}x{width}x{channels}" if axis == "kernel_size" else f"{channels} channels"
    figure.supxlabel(f"{axis.replace('_', ' ')}, batch {batch}, {size}", fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("records", type=Path, nargs="+", help="files that benchmark.py wrote")
    parser.add_argument("--write", type=Path, default=Path("runs/benchmark"), help="folder")
    settings = parser.parse_args()
    settings.write.mkdir(parents=True, exist_ok=True)
    rows = [row for path in settings.records for row in json.loads(path.read_text())["rows"]]
    draw_all(rows, settings.write)


if __name__ == "__main__":
    main()
