"""Quantizes every layer in every mode, and writes the tables of the docs.

`KERAS_BACKEND=torch python tests/quantized.py` adds what it finds under that backend to
`docs/guides/precision.json`, and writes the tables of `docs/guides/precision.md` anew from it.
"""

import json
import math
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
from building import answer, inputs_of
from cases import FIRST_CASES
from saved_models import NETWORKS, model_of

from keras_visattn import projections

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import pages  # noqa: E402

GUIDES = ROOT / "docs" / "guides"
FOUND, PAGE = GUIDES / "precision.json", GUIDES / "precision.md"
MARKS = "<!-- tables -->", "<!-- end of tables -->"
CASES = {case.layer: case for case in sorted(FIRST_CASES, key=str)}
RELOADED = ("int8", "int4", "float8")
MODES = (*RELOADED, "GPTQ, 8 bits", "GPTQ, 4 bits", "AWQ")


def projections_of(model):
    return [x for x in model._flatten_layers() if type(x) in projections.DENSE]


def quantize(model, inputs, mode):
    """Quantizes a model in one of `MODES`; those that calibrate do so by the inputs."""
    name, _, bits = mode.lower().removesuffix(" bits").partition(", ")
    if name in ("gptq", "awq"):
        arguments = {"weight_bits": int(bits)} if bits else {}
        projections.calibrate(model, inputs, name, **arguments)
    else:
        model.quantize(mode, filters=lambda layer: type(layer) in projections.DENSE)


def change(name, mode):
    """Gives how far a layer's answer moves, in percent of its largest number; or `None`."""
    model, inputs = model_of(CASES[name]), inputs_of(CASES[name])
    for layer in projections_of(model):  # of variance 1 / inputs, as training begins
        inward = math.prod(layer.kernel.shape[:-1])
        layer.kernel.assign(keras.ops.multiply(layer.kernel, 2 * inward**-0.5))
    before = answer(model, inputs)
    try:
        quantize(model, inputs, mode)
    except ValueError:  # all are left alone
        return None
    return float(100 * np.abs(answer(model, inputs) - before).max() / np.abs(before).max())


def changes():
    """Gives `change` of each layer that has projections, in each mode."""
    found = {}
    for name, case in CASES.items():
        if projections_of(model_of(case)):
            found[name] = {mode: change(name, mode) for mode in MODES}
            print(keras.backend.backend(), name, found[name], flush=True)
    return found


def reach(model, same):
    """Names the layers of a model that are quantized, those that get adapters, and the rest."""
    model.quantize("int8", filters=lambda layer: type(layer) in projections.DENSE)
    report = projections.report(model)
    quantized, left = ([x.path for x in rows] for rows in (report.quantized, report.left_alone))
    try:
        adapted = [x.path for x in projections.enable_lora(same, 1)]
    except ValueError:  # no projection
        adapted = []
    return quantized, adapted, left


def rows_of_layers():
    """Renders what is reached in each layer."""
    for name, case in CASES.items():
        cells = []
        for paths in reach(*(model_of(case, name="layer") for _ in range(2))):
            inner = [path.removeprefix("layer").strip("/") or "its own tables" for path in paths]
            cells.append(", ".join(f"`{x}`" if x[:3] != "its" else x for x in inner) or "none")
        yield f"| `{name}` | {' | '.join(cells)} |"


def rows_of_networks():
    """Renders how much of each network is reached."""
    for name, (make, _) in NETWORKS.items():
        model = make()
        share = sum(math.prod(x.kernel.shape) for x in projections_of(model)) / model.count_params()
        quantized, adapted, left = map(len, reach(model, make()))
        of = quantized + left
        yield (
            f"| {name.replace('_', ' ')} (network) "
            f"| {quantized} of {of} layers, {100 * share:.0f} % of the numbers "
            f"| {adapted} of {of} | {left} of {of} |"
        )


def rows_of_changes(found):
    """Renders the largest change of each layer on any backend."""
    for name in next(iter(found.values())):
        cells = [f"`{name}`"]
        for mode in MODES:
            moved = [backend[name][mode] for backend in found.values()]
            cells.append("left alone" if None in moved else f"{max(moved):.2g} %")
        yield f"| {' | '.join(cells)} |"


def tables(found):
    """Renders what is reached, and the largest changes."""
    lines = ["| | quantized | adapted by `enable_lora` | left alone |", "|---|---|---|---|"]
    lines += [*rows_of_layers(), *rows_of_networks()]
    lines += ["", "| | " + " | ".join(MODES) + " |", "|---" * (len(MODES) + 1) + "|"]
    return "\n".join([*lines, *rows_of_changes(found)])


def main():
    warnings.simplefilter("ignore")
    found = json.loads(FOUND.read_text()) if FOUND.is_file() else {}
    found[keras.backend.backend()] = changes()
    FOUND.write_text(json.dumps(found, indent=1) + "\n")
    pages.write_between(PAGE, MARKS, tables(found))


if __name__ == "__main__":
    main()
