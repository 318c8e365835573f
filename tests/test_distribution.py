"""Several devices answer as one does."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import spread_models
from scripts import folder_written_by
from spread_models import DEVICES, NETWORKS

from keras_visattn import distribution, layers

BACKEND = keras.backend.backend()
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="Keras distributes on JAX only")
SPREAD = {
    "jax": {
        "data": "one",
        "rows": "one",
        "channels": "one",
        "heads_transformer": "one_transformer",
        "rows_maps": "one_maps",
    },
    "tensorflow": {"mirrored": "one"},
    "torch": {"processes": "one"},
}[BACKEND]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the script found."""
    folder = folder_written_by(spread_models, BACKEND, tmp_path_factory)
    return {path.stem: np.load(path) for path in folder.glob("*.npz")}


@pytest.mark.parametrize("name", SPREAD)
def test_several_devices_train_and_answer_as_one(trained, name):
    one, several = trained[SPREAD[name]], trained[name]
    np.testing.assert_allclose(several["first"], one["first"], atol=1e-5)
    assert one["losses"][1] < one["losses"][0]
    np.testing.assert_allclose(several["losses"], one["losses"], atol=1e-5)
    # Those of every layer, side by side, are larger numbers.
    bound = 2e-5 * np.abs(one["outputs"]).max() if name == "rows_maps" else 1e-5
    np.testing.assert_allclose(several["outputs"], one["outputs"], atol=bound)


@on_jax
def test_rows_and_channels_are_refused_together_while_xla_convolves_wrongly(trained):
    with pytest.raises(ValueError, match=r"not both .*XLA.* Received: channels=2, rows=4"):
        distribution.parallel(channels=2, rows=4, devices=DEVICES)
    assert trained["xla"]["wrong"] > 1  # if this fails, XLA is mended: allow both


@on_jax
def test_each_device_has_its_rows_of_the_input_and_of_the_answer(trained):
    images, answer = trained["shard"]["shapes"]
    assert tuple(images) == (8, 2, 12, 3)
    assert tuple(answer[:3]) == (8, 2, 12)


@on_jax
def test_the_page_holds_the_table_of_what_is_shared_out():
    page = spread_models.pages.between(spread_models.PAGE, spread_models.MARKS)
    assert page == spread_models.table()


@pytest.mark.skipif(BACKEND == "jax", reason="JAX distributes")
@pytest.mark.parametrize("make", [distribution.parallel, lambda: distribution.layout_map(None)])
def test_backends_that_keras_does_not_distribute_say_so(make):
    instead = {"tensorflow": "MirroredStrategy", "torch": "DistributedDataParallel"}[BACKEND]
    with pytest.raises(NotImplementedError, match=f"{instead}.* Received: backend {BACKEND}"):
        make()


@on_jax
@pytest.mark.parametrize("name", NETWORKS)
def test_most_numbers_of_a_network_are_shared_out(name):
    spread = distribution.parallel(channels=4, devices=DEVICES)
    model = NETWORKS[name]()
    shared = [v for v in model.weights if "channels" in spread.get_variable_layout(v).axes]
    for variable in shared:
        axis = spread.get_variable_layout(variable).axes.index("channels")
        assert variable.shape[axis] % 4 == 0
    assert sum(np.prod(v.shape) for v in shared) > 0.9 * model.count_params()


@on_jax
def test_heads_are_shared_out_by_the_layout_map_itself():
    mesh = keras.distribution.DeviceMesh((4, 2), ("batch", "model"), DEVICES)
    layer = layers.MultiHeadAttention(4, 3, name="attention")
    layer.build((2, 5, 8), (2, 5, 8))
    layouts = distribution.layout_map(mesh, axis="model")
    assert layouts["attention/query/kernel"].axes == (None, "model", None)
    assert layouts["attention/attention_output/kernel"].axes == ("model", None, None)
    assert layouts["attention/attention_output/bias"] is None
    with pytest.raises(ValueError, match=r"`axis` must .* Received: "):
        distribution.layout_map(mesh)


@on_jax
def test_what_the_devices_do_not_divide_is_on_all_of_them():
    spread = distribution.parallel(channels=2, devices=DEVICES)
    variable = SimpleNamespace(path="predictions/kernel", shape=(8, 5), _layout=None)
    assert spread.get_variable_layout(variable).axes == (None, None)
    spread = distribution.parallel(rows=2, devices=DEVICES)
    assert spread.get_data_layout((8, 16, 12, 3)).axes == ("batch", "rows", None, None)
    assert spread.get_data_layout((8, 15, 12, 3)).axes == ("batch", None, None, None)
    assert spread.get_data_layout((8,)).axes == ("batch",)
    with pytest.raises(ValueError, match=r"must divide .* Received: channels=3"):
        distribution.parallel(channels=3, devices=DEVICES)
