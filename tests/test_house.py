"""The house rules that a machine can hold."""

import ast
import contextlib
import doctest
import inspect
import io
import re
import sys
from pathlib import Path

import cases
import keras
import plant_defects
import pytest
import reference
from building import PUBLIC_LAYERS, signature_of

import keras_visattn

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_visattn"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = ["typing", "kernels", "ops", "layers", "models"]  # what is not here stands on top
SECTIONS = ["Args:", "Input shape:", "Output shape:", "Raises:", "Reference:", "Examples:"]
FORBIDDEN_NAMES = {"utils", "base", "common", "helpers", "config", "core"}
BACKENDS = {"tensorflow", "jax", "torch"}
OPTIONAL = {  # what an extra installs, and the one file that needs it
    "drawing.py": {"matplotlib"},
    "hub_backbone.py": {"keras_hub"},
    "weights.py": {"safetensors", "torch"},  # it reads PyTorch's files, under every backend
}


def floor_of(module):
    part = module.split(".")[1] if "." in module else ""
    return FLOORS.index(part) if part in FLOORS else len(FLOORS)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_texts_to_plant_defects_in_stand_in_their_files():
    for name, file, _, old, new in plant_defects.DEFECTS:
        text = (PACKAGE / file).read_text()
        assert old in text and old != new, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_keeps_the_house_rules(path):
    module = ".".join(["keras_visattn", *path.relative_to(PACKAGE).with_suffix("").parts])
    text = path.read_text()
    assert text.count("\n") <= 300
    assert path.stem not in FORBIDDEN_NAMES
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text)))
    for name in imports_of(path):
        if name.startswith("keras_visattn."):
            assert floor_of(name) <= floor_of(module), f"{module} imports {name}"
        else:
            allowed = {"keras", "numpy", "keras_visattn"} | OPTIONAL.get(path.name, set())
            if path.parent.name == "kernels":
                # the one backend that it is for, and a compiler of loops
                allowed |= {path.stem.split("_")[0], "numba"}
            assert name.split(".")[0] in allowed | sys.stdlib_module_names
    if "kernels" not in path.parts:
        words = {
            node.value
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not BACKENDS & words


@pytest.mark.parametrize("name", PUBLIC_LAYERS)
def test_layer_is_documented_registered_and_tested(name):
    layer = PUBLIC_LAYERS[name]
    doc = inspect.getdoc(layer)
    places = [doc.find(f"\n{section}\n") for section in SECTIONS]
    assert -1 not in places and places == sorted(places)
    own = inspect.signature(layer.__init__).parameters.values()
    for parameter in own:
        if parameter.name not in ("self", "kwargs"):
            assert re.search(rf"^    {parameter.name}: ", doc, re.MULTILINE), parameter.name
    assert keras.saving.get_registered_name(layer) == f"keras_visattn>{name}"
    assert any(case.layer == name for case in cases.CASES)
    assert name in reference.REFERENCES
    assert f"`{name}`" in (ROOT / "docs" / "papers.md").read_text()
    assert "data_format" in signature_of(layer) or name in {
        "MultiHeadAttention",
        "RelativePositionEmbedding2D",
        "TokenEmbedding",
        "TransformerDecoderBlock",
        "TransformerEncoderBlock",
    }


def test_no_concrete_layer_inherits_from_another():
    for layer in PUBLIC_LAYERS.values():
        assert not set(layer.__mro__[1:]) & set(PUBLIC_LAYERS.values())


DOCUMENTED = {
    "profile": keras_visattn.complexity.profile,
    "load_checkpoint": keras_visattn.weights.load_checkpoint,
    "enable_lora": keras_visattn.projections.enable_lora,
    "projections.report": keras_visattn.projections.report,
    **{n: v for n, v in vars(keras_visattn.surgery).items() if inspect.isfunction(v)},
    **{n: v for n, v in vars(keras_visattn.visualize).items() if inspect.isfunction(v)},
    **PUBLIC_LAYERS,
    **{n: v for n, v in vars(keras_visattn.ops).items() if callable(v)},
    **{n: v for n, v in vars(keras_visattn.models).items() if callable(v)},
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_example_runs(name):
    namespace = {"keras": keras, "keras_visattn": keras_visattn}
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(recurse=False).find(
        DOCUMENTED[name], name, globs=namespace
    ):
        runner.run(example)
    assert runner.failures == 0


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_name_is_on_the_page_of_the_api(name):
    page = (ROOT / "docs" / "api.md").read_text()
    assert re.search(rf"^::: keras_visattn\.[\w.]*\b{name}$", page, re.MULTILINE)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


BLOCK = r'```python\n(.*?)```\n(?:\n```text title="Output"\n(.*?)```\n)?'


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_the_pages_run(page):
    namespace = {}
    for block, output in re.findall(BLOCK, page.read_text(), re.DOTALL):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, str(page), "exec"), namespace)
        assert output in ("", printed.getvalue())


COMMAND = r"python (?:-\S+ )*((?:examples|tests|docs)/\S+\.py)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_name_files(page):
    for path in re.findall(COMMAND, page.read_text()):
        assert (ROOT / path).is_file(), path
