"""`python -m keras_visattn` says what runs, and why."""

import runpy

import keras
import pytest

import keras_visattn
from keras_visattn.kernels import windows


@pytest.fixture
def described(capsys):
    def run():
        runpy.run_module("keras_visattn", run_name="__main__")
        return capsys.readouterr().out

    return run


def test_versions_backend_and_kernels_are_named(described):
    text = described()
    assert f"keras_visattn {keras_visattn.__version__}" in text
    assert f"keras {keras.__version__}" in text
    assert f"backend: {keras.backend.backend()}, devices: " in text
    assert "local attention: loops that numba compiles" in text


def test_a_missing_compiler_is_the_reason(described, monkeypatch):
    monkeypatch.setattr(windows, "loops", lambda: None)
    assert "tiles" in described() and "numba is not installed" in described()
