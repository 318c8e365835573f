"""What one backend saves, each other one reads; what is broken is refused."""

import zipfile

import h5py
import keras
import numpy as np
import pytest
import saved_models
from building import answer, inputs_of, numpy
from cases import CASES, FIRST_CASES
from gradients import answer_and_gradients
from saved_models import NETWORKS, gradients_of, model_of, model_of_all, network_of
from scripts import folder_written_by

from keras_visattn import weights

BACKENDS = ("tensorflow", "jax", "torch")
OTHERS = [name for name in BACKENDS if name != keras.backend.backend()]
NEXT = BACKENDS[(BACKENDS.index(keras.backend.backend()) + 1) % 3]  # each row has one other


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Gives the folder that another backend wrote its models to."""
    return lambda backend: folder_written_by(saved_models, backend, tmp_path_factory)


def close(found, expected, bound):
    np.testing.assert_allclose(found, expected, atol=bound * max(1.0, np.abs(expected).max()))


waits = pytest.mark.timeout(1200)  # the first row waits for the models


@waits
@pytest.mark.parametrize("case", [case for case in CASES if case not in FIRST_CASES], ids=str)
def test_a_model_of_another_backend_answers_the_same(case, written):
    path = written(NEXT) / f"{CASES.index(case)}.keras"
    loaded = keras.saving.load_model(path, safe_mode=True)
    expected = np.load(path.with_suffix(".npz"))["answer"]
    close(answer(loaded, inputs_of(case)), expected, 1e-5)


@waits
@pytest.mark.parametrize("other", [0, 1])
@pytest.mark.parametrize("case", FIRST_CASES, ids=str)
def test_each_backend_reads_each_others_models_and_weights(case, other, written):
    path = written(OTHERS[other]) / f"{CASES.index(case)}.keras"
    expected = dict(np.load(path.with_suffix(".npz")))
    loaded = keras.saving.load_model(path, safe_mode=True)
    close(answer(loaded, inputs_of(case)), expected.pop("answer"), 1e-5)
    for found in (numpy(x) for x in gradients_of(loaded, case)):
        close(found, expected.pop(next(iter(expected))), 1e-4)
    assert not expected
    values = [numpy(x.value) for x in loaded.weights]
    model = model_of(case)
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape, weight.dtype))
    model.load_weights(path.with_suffix(".weights.h5"))
    for weight, value in zip(model.weights, values, strict=True):
        np.testing.assert_array_equal(numpy(weight.value), value)


@waits
@pytest.mark.parametrize("other", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_backend_reads_each_others_networks(name, other, written):
    path = written(OTHERS[other]) / f"{name}.keras"
    loaded = keras.saving.load_model(path, safe_mode=True)
    values = [numpy(x.value) for x in loaded.weights]
    for weight in loaded.weights:
        weight.assign(np.zeros(weight.shape, weight.dtype))
    loaded.load_weights(path.with_suffix(".weights.h5"))
    for weight, value in zip(loaded.weights, values, strict=True):
        np.testing.assert_array_equal(numpy(weight.value), value)
    answers, found = answer_and_gradients(loaded, NETWORKS[name][1])
    expected = np.load(path.with_suffix(".npz"))
    assert [f"answer {place}" for place in range(len(answers))] == expected.files[: len(answers)]
    gradients = expected.files[len(answers) :]
    steepest = max(np.abs(expected[x]).max() for x in gradients)  # small ones are rounded more
    for x, saved in zip([*answers, *found], expected.files, strict=True):
        scale = steepest if saved in gradients else np.abs(expected[saved]).max()
        np.testing.assert_allclose(x, expected[saved], atol=1e-4 * scale, err_msg=saved)


@pytest.mark.parametrize("path", sorted(saved_models.SAVED.glob("*.keras")), ids=lambda x: x.stem)
def test_files_of_all_versions_are_read(path):
    loaded = keras.saving.load_model(path, safe_mode=True)
    kept = np.load(path.with_suffix(".npz"))
    expected, *arrays = (kept[name] for name in kept.files)
    close(answer(loaded, arrays), expected, 1e-5)
    assert {type(layer).__name__ for layer in loaded.layers} >= {x.layer for x in FIRST_CASES}


def test_nothing_is_pickled(tmp_path):
    path = tmp_path / "model.keras"
    model_of_all()[0].save(path)
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == {"metadata.json", "config.json", "model.weights.h5"}


CBAM = next(case for case in CASES if case.layer == "CBAM")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused_and_the_model_stays(share, tmp_path):
    model = model_of(CBAM)
    paths = tmp_path / "model.keras", tmp_path / "model.weights.h5"
    model.save(paths[0])
    model.save_weights(paths[1])
    model.layers[-1].channel_attention.squeeze.kernel.assign_add(
        np.ones(model.layers[-1].channel_attention.squeeze.kernel.shape)
    )
    before = [numpy(x.value) for x in model.weights]
    for path in paths:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
    with pytest.raises((ValueError, OSError, zipfile.BadZipFile)):
        keras.saving.load_model(paths[0])
    for path in paths:
        with pytest.raises((ValueError, OSError, zipfile.BadZipFile)):
            model.load_weights(path)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight.value), old)


def test_a_tampered_archive_is_refused(tmp_path):
    model = model_of(CBAM)
    path = tmp_path / "model.keras"
    model.save(path)
    kernel = numpy(model.layers[-1].channel_attention.squeeze.kernel.value).tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(kernel)] ^= 1
    path.write_bytes(content)
    with pytest.raises((ValueError, OSError, zipfile.BadZipFile)):
        keras.saving.load_model(path)


def damage(path, how):
    """Damages the last array of a weights file."""
    with h5py.File(path, "r+") as file:
        arrays = []
        file.visititems(lambda _, x: arrays.append(x) if isinstance(x, h5py.Dataset) else None)
        name, value = arrays[-1].name, arrays[-1][()]
        del file[name]
        if how == "another shape":
            file[name] = np.stack([value, value])
        elif how == "a changed byte":  # HDF5 notices where the array has a checksum
            made = file.create_dataset(name, data=value, chunks=value.shape, fletcher32=True)
            start = made.id.get_chunk_info(0).byte_offset
    if how == "a changed byte":
        content = bytearray(path.read_bytes())
        content[start] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "another shape", "a changed byte"])
@pytest.mark.parametrize("name", ["resnet_cbam", "transformer"])
def test_a_weights_file_is_loaded_wholly_or_not_at_all(name, how, tmp_path):
    path = tmp_path / "model.weights.h5"
    model = network_of(name)
    model.compile(keras.optimizers.Adam())
    model.optimizer.build(model.trainable_variables)
    model.save_weights(path)
    damage(path, how)
    variables = [*model.variables, *model.optimizer.variables]
    before = [numpy(x.value) + 1 for x in variables]
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    with pytest.raises(ValueError, match="could not be loaded"):
        weights.load_weights(model, path)
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(numpy(variable.value), value)
