"""The Transformer: counts, masks, training, saving, and the schedule of its learning rate."""

import keras
import numpy as np
import pytest
from building import answer, numpy
from small_transformer import END, SMALL, START, small_model, tokens

from keras_visattn import complexity, models


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 44_140_544),
        ({"hidden_dim": 1024, "intermediate_dim": 4096, "num_heads": 16}, 176_361_472),
    ],
    ids=["base", "big"],
)
def test_parameters_beside_the_table_are_those_of_torch(changes, count):
    with keras.StatelessScope():  # shapes without values
        model = models.Transformer(37_000, **changes)
    table = 37_000 * changes.get("hidden_dim", 512)
    assert model.count_params() == count + table


def test_multiply_adds():
    model = models.Transformer(13, 1, 16, 32, num_heads=2)
    attention = {"encoder": 4 * 9 * 16 * 16 + 2 * 9 * 9 * 16}
    attention["self"] = 4 * 7 * 16 * 16 + 2 * 7 * 7 * 16
    attention["cross"] = (2 * 7 + 2 * 9) * 16 * 16 + 2 * 7 * 9 * 16
    feed_forward = 2 * (9 + 7) * 16 * 32
    result = complexity.profile(model, [(9,), (7,)])
    assert result.macs == sum(attention.values()) + feed_forward + 7 * 16 * 13
    assert all(row.macs is not None for row in result.rows)
    assert sum(row.parameters for row in result.rows) == result.parameters == model.count_params()


def test_padding_has_no_influence():
    model = small_model()
    source, target = tokens(2, 6), tokens(2, 5, seed=1)
    expected = answer(model, [source, target])
    longer = np.pad(source, ((0, 0), (0, 3))), np.pad(target, ((0, 0), (0, 2)))
    found = answer(model, list(longer))
    np.testing.assert_allclose(found[:, :5], expected, atol=1e-5)


def test_later_target_tokens_change_nothing_earlier():
    model = small_model()
    source, target = tokens(2, 6), tokens(2, 5, seed=1)
    expected = answer(model, [source, target])
    changed = target.copy()
    changed[:, 3:] = tokens(2, 2, seed=9)
    found = answer(model, [source, changed])
    np.testing.assert_allclose(found[:, :3], expected[:, :3], atol=1e-6)
    assert np.abs(found[:, 3:] - expected[:, 3:]).max() > 1e-3


def test_padding_counts_in_no_loss():
    model = small_model(dropout=0.0)
    source, target, labels = tokens(2, 6), tokens(2, 5, seed=1), tokens(2, 5, seed=2)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected = model.test_on_batch([source, target], labels)
    longer = [np.pad(x, ((0, 0), (0, 2))) for x in (target, labels)]
    found = model.test_on_batch([source, longer[0]], longer[1])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_every_weight_moves_in_one_step():
    model = small_model()
    before = [numpy(w.value) for w in model.trainable_weights]
    schedule = models.InverseSquareRootDecay(16, warmup_steps=10)
    optimizer = keras.optimizers.Adam(schedule, beta_2=0.98, epsilon=1e-9)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch([tokens(4, 6), tokens(4, 5, seed=1)], tokens(4, 5, seed=2))
    for weight, old in zip(model.trainable_weights, before, strict=True):
        moved = np.abs(numpy(weight.value) - old).max()
        assert moved > 1e-7 or weight.path.endswith("key/bias"), weight.path


def test_saved_model_answers_the_same(tmp_path):
    model = small_model(normalize_first=True, padding_token=3)
    source, target = tokens(2, 6), tokens(2, 5, seed=1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    expected = answer(model, [source, target])
    np.testing.assert_allclose(answer(loaded, [source, target]), expected, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_answers_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = models.Transformer(13, **SMALL)
        decoder = models.GreedyDecoder(model, START, END, 4)
        source = np.pad(tokens(2, 6), ((0, 0), (0, 2)))
        source[1] = 0  # a row of padding alone
        logits = answer(model, [source, tokens(2, 5, seed=1)])
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()
        assert numpy(decoder(source)).shape == (2, 4)
    finally:
        keras.config.set_dtype_policy("float32")


def test_bad_model():
    for arguments in (
        {"vocabulary_size": 0},
        {"num_layers": 0},
        {"hidden_dim": 15},
        {"num_heads": 0},
        {"dropout": 1.5},
        {"padding_token": 13},
    ):
        with pytest.raises(ValueError, match=r"Received: "):
            models.Transformer(**{"vocabulary_size": 13, **SMALL, **arguments})


@pytest.mark.parametrize(("hidden_dim", "warmup_steps"), [(512, 4000), (1024, 100)])
def test_schedule_is_the_papers(hidden_dim, warmup_steps):
    schedule = models.InverseSquareRootDecay(hidden_dim, warmup_steps)
    counted = [0, 1, 9, warmup_steps - 2, warmup_steps - 1, warmup_steps, 10 * warmup_steps]
    rates = [float(schedule(step)) for step in counted]
    expected = [
        hidden_dim**-0.5 * min((step + 1) ** -0.5, (step + 1) * warmup_steps**-1.5)
        for step in counted
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert max(rates) == rates[4]
    config = keras.optimizers.schedules.serialize(schedule)
    again = keras.optimizers.schedules.deserialize(config)
    assert float(again(17)) == float(schedule(17))
    with pytest.raises(ValueError, match=r"must .*Received: "):
        models.InverseSquareRootDecay(hidden_dim, warmup_steps=0)
