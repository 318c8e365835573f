"""Exports every layer to every format, runs the files, and writes the table of the docs.

`KERAS_BACKEND=torch python tests/exported.py` adds what it finds under that backend to
`docs/guides/export.json`, and writes the tables of `docs/guides/export.md` anew from it.
"""

import json
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from building import make, numpy, randomize
from cases import FIRST_CASES

from keras_visattn import models

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import pages  # noqa: E402
from export import OFFERED, export, runtime  # noqa: E402

# The example wants any batch; litert-torch fixes the sizes, and is not among the tests' packages.
FORMATS = {**OFFERED, "torch": (*OFFERED["torch"], "litert")}
FOUND = ROOT / "docs" / "guides" / "export.json"
PAGE = ROOT / "docs" / "guides" / "export.md"
MARKS = "<!-- tables -->", "<!-- end of tables -->"
RESNET = "`ResNet`, local attention"
LEVELS = ("any size", "any batch", "fixed")  # what may change from call to call
UNWANTED = b"ExtractImagePatches"
TITLES = {
    "tf_saved_model": "SavedModel",
    "onnx": "ONNX",
    "openvino": "OpenVINO",
    "litert": "LiteRT",
    "torch": "`.pt2`",
}


class Subject(NamedTuple):
    """What is exported: how to make a model for some shapes, and the shapes that it is run at."""

    make: object
    shapes: tuple
    axes: tuple  # of each input, whose sizes may change
    highest: float = np.inf  # the inputs are integers below it

    def model(self, level):
        free = {"any size": lambda axes: (0, *axes), "any batch": lambda _: (0,)}
        changing = [free.get(level, lambda _: ())(axes) for axes in self.axes]
        return self.make(
            [
                tuple(None if axis in axes else size for axis, size in enumerate(shape))
                for shape, axes in zip(self.shapes, changing, strict=True)
            ]
        )

    def inputs(self, batch=None, more=0):
        draw = np.random.default_rng(5)
        for shape, axes in zip(self.shapes, self.axes, strict=True):
            sizes = [size + more * (axis in axes) for axis, size in enumerate(shape)]
            sizes[0] = sizes[0] if batch is None else batch
            if self.highest < np.inf:
                yield draw.integers(self.highest, size=sizes).astype("float32")
            else:
                yield draw.normal(size=sizes).astype("float32")


def _of_case(case):
    def model(shapes):
        inputs = [keras.Input(batch_shape=shape) for shape in shapes]
        layer = make(case)
        outputs = layer(*inputs)
        randomize(layer)
        return keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)

    count = {2: 1, 3: 1, 4: 2, 5: 2}
    axes = tuple(tuple(range(1, 1 + count[len(shape)])) for shape in case.shapes)
    highest = case.arguments["input_dim"] if case.layer == "TokenEmbedding" else np.inf
    return Subject(model, case.shapes, axes, highest)


def _resnet(shapes):
    (shape,) = shapes
    small = {"filters": 8, "num_heads": 4, "kernel_size": 3, "classes": 4}
    return models.ResNet(26, "local", input_shape=shape[1:], **small)


SUBJECTS = {f"`{case.layer}`": _of_case(case) for case in sorted(FIRST_CASES, key=str)}
SUBJECTS[RESNET] = Subject(_resnet, ((2, 33, 40, 3),), ((1, 2),))


def check(subject, file_format, level):
    """Exports a model, runs it at several sizes, and gives the largest difference, relative.

    Raises:
        AssertionError: If the file answers otherwise than the model.
    """
    model = subject.model(level)
    shapes = [tuple(x.shape) for x in model.inputs]
    if level == "fixed":
        shapes = subject.shapes
    sizes = {"any size": [{}, {"batch": 1, "more": 13}, {"batch": 3, "more": -1}]}
    sizes |= {"any batch": [{}, {"batch": 1}, {"batch": 5}], "fixed": [{}]}
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        path = export(model, file_format, folder, shapes, subject.shapes)
        run = runtime(file_format, path)
        for size in sizes[level]:
            arrays = list(subject.inputs(**size))
            outputs = np.asarray(run(arrays))
            expected = numpy(model(arrays if len(arrays) > 1 else arrays[0], training=False))
            assert outputs.shape == expected.shape, f"shape {outputs.shape} at {size}"
            scale = max(1.0, np.abs(expected).max())
            differences.append(float(np.abs(outputs - expected).max() / scale))
            assert differences[-1] < 1e-4, f"difference {differences[-1]:.1e} at {size}"
        assert not holds_patches(Path(folder))
    return max(differences)


def holds_patches(folder):
    """Whether a file names TensorFlow's operation that few runtimes have."""
    return any(UNWANTED in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def reach(subject, file_format):
    """Gives the highest level that works (or `None`), and why the one above it does not."""
    why, levels = None, LEVELS
    if (file_format, subject) == ("torch", SUBJECTS[RESNET]):
        why, levels = "torch.export works out sizes for more than ten minutes", LEVELS[1:]
    for level in levels:
        try:
            check(subject, file_format, level)
        except Exception as error:
            why = f"{type(error).__name__}: {_short(str(error))}"
        else:
            return level, why
    return None, why


def _short(message):
    message = re.sub(r"\x1b\[[\d;]*m|/\S+/|'?[\w/]*?(functional|resnet)\w*/\S+", " ", message)
    message = re.sub(r"(?<=runtimeNode) number \d+", "", message)
    message = " ".join(message.replace("|", "/").split())
    for start in ("Original error: ", "Status Message: ", "operations: "):
        message = message.rpartition(start)[2] or message
    return message[:140]


def tables(found):
    """Renders what was found: a table a backend, and the reasons below."""
    text = []
    for backend, formats in found.items():
        names = [name for name in TITLES if name in formats]
        text += [f"### {backend}", "", "| | " + " | ".join(TITLES[n] for n in names) + " |"]
        text.append("|---" * (len(names) + 1) + "|")
        reasons = []
        for subject in SUBJECTS:
            cells = []
            for name in names:
                level, why = formats[name].get(subject, ("not tried", None))
                if why is not None and why not in reasons:
                    reasons.append(why)
                mark = "" if why is None else f" [{reasons.index(why) + 1}]"
                cells.append(f"{level or 'no'}{mark}")
            text.append(f"| {subject} | " + " | ".join(cells) + " |")
        text.append("")
        text += [f"{number}. `{why.replace('`', '')}`" for number, why in enumerate(reasons, 1)]
        text.append("")
    return "\n".join(text) + "\n"


def main():
    warnings.simplefilter("ignore")
    backend = keras.backend.backend()
    titles = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
    found = json.loads(FOUND.read_text()) if FOUND.is_file() else {}
    formats = found.setdefault(titles[backend], {})
    wanted = sys.argv[1:] or OFFERED[backend]  # beside these, what is named and installed
    for file_format in wanted:
        formats[file_format] = {}
        for name, subject in SUBJECTS.items():
            formats[file_format][name] = reach(subject, file_format)
            print(backend, file_format, name, *formats[file_format][name], flush=True)
        FOUND.write_text(json.dumps(found, indent=1) + "\n")
    pages.write_between(PAGE, MARKS, tables(found))


if __name__ == "__main__":
    main()
