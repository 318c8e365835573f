"""Exported files answer as the model does, in the format's own runtime, at the sizes promised."""

import json

import exported
import keras
import numpy as np
import pytest

FOUND = json.loads(exported.FOUND.read_text())
BACKEND = keras.backend.backend()
TITLE = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}[BACKEND]
WHOLE = {"tensorflow": "tf_saved_model", "jax": "onnx", "torch": "onnx"}[BACKEND]  # every layer
PART = ("`CBAM`", "`AugmentedConv2D`")  # in every other format
PAIRS = [(WHOLE, name) for name in exported.SUBJECTS if name != exported.RESNET]
PAIRS += [(other, name) for other in exported.FORMATS[BACKEND] if other != WHOLE for name in PART]

# The converters' own warnings: none comes from the model.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("file_format", "name"), PAIRS)
def test_the_file_answers_as_far_as_the_table_says(file_format, name):
    level, _ = FOUND[TITLE][file_format][name]
    if level is None:
        pytest.skip("the table says no")
    if file_format == "litert" and BACKEND == "torch":
        pytest.importorskip("litert_torch")  # in an environment that has it
    assert exported.check(exported.SUBJECTS[name], file_format, level) < 1e-4


def test_the_page_holds_the_tables_of_what_was_found():
    assert exported.pages.between(exported.PAGE, exported.MARKS) == exported.tables(FOUND).strip()
    for formats in FOUND.values():
        for levels in formats.values():
            assert set(levels) <= set(exported.SUBJECTS)
            assert len(levels) >= len(exported.SUBJECTS) - 1


def test_a_wrong_answer_and_unwanted_operations_are_noticed(tmp_path, monkeypatch):
    subject = exported.SUBJECTS["`SqueezeExcite`"]
    exact = exported.runtime

    def wrong(*arguments):
        run = exact(*arguments)
        return lambda arrays: np.asarray(run(arrays)) + 0.1

    monkeypatch.setattr(exported, "runtime", wrong)
    level, why = exported.reach(subject, WHOLE)
    assert level is None and "difference" in why
    assert not exported.holds_patches(tmp_path)
    (tmp_path / "model").write_bytes(b"..ExtractImagePatches..")
    assert exported.holds_patches(tmp_path)
