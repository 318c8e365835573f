"""The tables and figures of `evidence.py`, from its CSV file."""

import ast
import csv
import math
from typing import NamedTuple

import evidence_networks
import numpy as np
from matplotlib.figure import Figure
from schemes import draw_in_schemes
from scipy import stats

HEADING = "## The runs\n"
LOOKS = {
    "grad_cam_stage2_inside": "Grad-CAM, stage 2",
    "grad_cam_stage3_inside": "Grad-CAM, stage 3",
    "gate_inside": "spatial gates",
}


class Comparison(NamedTuple):
    """A variant against the one that a question sets it against, accuracies in percent.

    Args:
        variant: String.
        accuracies: List of floats, one a seed.
        parameters: Integer.
        macs: Integer.
        difference: Float, of the mean from the baseline's.
        margin: Float, half the width of the difference's 95 % interval; `nan` with one seed, and
            for the baseline itself.
    """

    variant: str
    accuracies: list
    parameters: int
    macs: int
    difference: float
    margin: float

    @property
    def verdict(self):
        if math.isnan(self.margin):
            return ""
        if abs(self.difference) <= self.margin:
            return "not told apart"
        return "better" if self.difference > 0 else "worse"


def read(path):
    """Gives the lines of the CSV file, numbers as numbers, without what is empty."""
    with path.open(newline="") as file:
        return [
            {name: _value(name, text) for name, text in line.items() if text}
            for line in csv.DictReader(file)
        ]


def _value(name, text):
    return text if name in ("data", "variant") else ast.literal_eval(text)


def comparisons(lines, baseline, others):
    """Compares variants by Student's t; the spread of the seeds is pooled over all of them."""
    runs = {name: [x for x in lines if x["variant"] == name] for name in (baseline, *others)}
    runs = {name: found for name, found in runs.items() if found}
    if baseline not in runs:
        return []
    accuracies = {name: [100 * x["accuracy"] for x in found] for name, found in runs.items()}
    freedom = sum(len(x) - 1 for x in accuracies.values())
    squares = sum(len(x) * np.var(x) for x in accuracies.values())
    spread = math.sqrt(squares / freedom) if freedom else math.nan
    factor = stats.t.ppf(0.975, freedom) if freedom else math.nan
    mean = np.mean(accuracies[baseline])
    return [
        Comparison(
            name,
            accuracies[name],
            found[0]["parameters"],
            found[0]["macs"],
            float(np.mean(accuracies[name]) - mean),
            math.nan
            if name == baseline
            else factor * spread * math.sqrt(1 / len(found) + 1 / len(runs[baseline])),
        )
        for name, found in runs.items()
    ]


def answers(lines):
    """Gives the comparisons of every question on Fashion-MNIST that has runs."""
    lines = [x for x in lines if x["data"] == "fashion_mnist"]
    found = {
        question: comparisons(lines, *networks)
        for question, networks in evidence_networks.QUESTIONS.items()
    }
    return {question: rows for question, rows in found.items() if len(rows) > 1}


def _table(header, rows):
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in cells)


def _mean(values, form="{:.2f}"):
    spread = f" ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else ""
    return form.format(np.mean(values)) + spread


def _answer(rows):
    header = ["network", "parameters", "multiply-adds", "accuracy, %", "difference, 95 %", ""]
    return _table(
        header,
        [
            [
                row.variant,
                f"{row.parameters:,}",
                f"{row.macs / 1e6:.2f} M",
                _mean(row.accuracies),
                "" if math.isnan(row.margin) else f"{row.difference:+.2f} ± {row.margin:.2f}",
                row.verdict,
            ]
            for row in rows
        ],
    )


def _where(lines):
    names = list(dict.fromkeys(line["variant"] for line in lines))
    rows = []
    for name in names:
        runs = [line for line in lines if line["variant"] == name]
        accuracy = [100 * line["accuracy"] for line in runs]
        looks = [[100 * line[x] for line in runs if x in line] for x in LOOKS]
        rows.append([name, _mean(accuracy), *(_mean(x, "{:.1f}") if x else "" for x in looks)])
    return _table(["network", "accuracy, %", *(f"{x}, % in the box" for x in LOOKS.values())], rows)


def markdown(lines):
    """Writes all tables."""
    fashion, placed = (
        [line for line in lines if line["data"] == data] for data in ("fashion_mnist", "placed")
    )
    parts = []
    if fashion:
        seeds = len({line["seed"] for line in fashion})
        parts.append(
            f"Fashion-MNIST, 60,000 images to train on, 10,000 to test on; seeds: {seeds}; width: "
            f"{fashion[0]['width']}; epochs: {fashion[0]['epochs']}. After ± stands the standard "
            "deviation over seeds, and with a difference its 95 % interval. The first network of a "
            "table is the one that the others are set against. One in twenty differences leaves "
            "its interval by chance."
        )
        for question, rows in answers(lines).items():
            parts += [f"### {question}", _answer(rows)]
    if placed:
        box = 100 * np.mean([line["box_share"] for line in placed])
        parts += [
            "### Where does it look?",
            "Clothes on textures, in colour: the share of a map that lies in the article's box. A "
            f"map that knows nothing has {box:.1f} % there, the box's share of the image. "
            f"Seeds: {len({line['seed'] for line in placed})}; epochs: {placed[0]['epochs']}.",
            _where(placed),
        ]
    return "\n\n".join(parts) + "\n"


def draw(found):
    """Draws each question: a dot for each seed, a bar for the interval of the difference."""
    heights = [len(rows) for rows in found.values()]
    figure = Figure(figsize=(8, 0.34 * sum(heights) + 0.75 * len(heights)), layout="constrained")
    grid = figure.subplots(len(found), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, (question, rows) in zip(grid, found.items(), strict=True):
        mean = np.mean(rows[0].accuracies)
        axis.axvline(0, color="gray", linewidth=1)
        for place, row in enumerate(rows):
            colors = {"better": "tab:green", "worse": "tab:red"}
            color = colors.get(row.verdict, "gray")
            axis.plot(np.array(row.accuracies) - mean, [place] * len(row.accuracies), ".", c=color)
            if place:
                axis.errorbar(
                    row.difference, place, xerr=row.margin, color=color, capsize=3, marker="|"
                )
        axis.set_yticks(range(len(rows)), [row.variant for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_title(question, fontsize="medium", loc="left")
    grid[-1].set_xlabel("accuracy, difference from the first, percent")
    return figure


def write(path, folder, page=None):
    """Writes the tables and figures into a folder, and the tables to the end of a page.

    Returns:
        The tables, as Markdown.
    """
    lines = read(path)
    text = markdown(lines)
    found = answers(lines)
    if found:
        draw_in_schemes(lambda: draw(found), folder, "differences.svg")
    (folder / "evidence.md").write_text(text)
    if page is not None:
        before, _, _ = page.read_text().partition(HEADING)
        page.write_text(before + HEADING + "\n" + text)
    return text
