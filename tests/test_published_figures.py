"""The networks have the papers' parameters and operations; the page that says so is up to date."""

import math
import pathlib
import sys

import pytest

from keras_visattn import layers
from keras_visattn.models.resnet import BLOCKS

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import published_figures  # noqa: E402
from published_figures import local, resnet  # noqa: E402

PAGE = (ROOT / "docs" / "papers.md").read_text()
FIGURES = [
    pytest.param(figure, table.unit, id=f"{table.title.split(' (')[0]}: {figure.network}")
    for table in published_figures.TABLES
    for figure in table.figures
]


@pytest.mark.parametrize(("figure", "unit"), FIGURES)
def test_page_has_the_network_and_the_reason_of_any_difference(figure, unit):
    assert f"| {' | '.join(published_figures.row_of(figure, unit))} |" in PAGE


def test_page_has_every_table_and_no_other():
    tables = PAGE.partition(published_figures.HEADING)[2]
    titles = [f"### {table.title}" for table in published_figures.TABLES]
    assert [line for line in tables.splitlines() if line.startswith("#")] == titles
    rows = [line for line in tables.splitlines() if line.startswith("| ")]
    assert len(rows) == len(FIGURES) + 2 * len(titles)


# Counted by executing other code, or by arithmetic that reproduces what the papers print.
PARAMETERS = {
    "resnet18": (resnet(18), 11_689_512),
    "resnet34": (resnet(34), 21_797_672),
    "resnet50": (resnet(50), 25_557_032),
    "resnet101": (resnet(101), 44_549_160),
    "resnet152": (resnet(152), 60_192_808),
    "resnet18-cbam": (resnet(18, "cbam"), 11_779_392),
    "resnet34-cbam": (resnet(34, "cbam"), 21_960_468),
    "resnet50-cbam": (resnet(50, "cbam"), 28_089_624),
    "resnet101-cbam": (resnet(101, "cbam"), 49_330_172),
    # with tables for 28 x 28, where the map is not pooled
    "resnet34-augmented": (resnet(34, "augmented", attention_pool=1), 20_749_552),
    "resnet50-augmented": (resnet(50, "augmented", attention_pool=1), 25_813_872),
    "resnet101-augmented": (resnet(101, "augmented", attention_pool=1), 45_391_208),
    "resnet152-augmented": (resnet(152, "augmented", attention_pool=1), 61_622_496),
    "resnet50-augmented-alone": (
        resnet(50, "augmented", attention_pool=1, key_ratio=1, value_ratio=1),
        19_388_040,
    ),
    "resnet26": (resnet(26), 13_696_552),
    "resnet38": (resnet(38), 19_626_792),
    "resnet26-local": (local(26), 10_331_264),
    "resnet38-local": (local(38), 14_173_384),
    "resnet50-local": (local(50), 18_015_504),
    # and 192 that say where in its block a pixel of the stem is
    "resnet26-attention": (local(26, stem="attention"), 10_323_008 + 192),
    "resnet38-attention": (local(38, stem="attention"), 14_165_128 + 192),
    "resnet50-attention": (local(50, stem="attention"), 18_007_248 + 192),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_to_the_last_digit(name):
    make, expected = PARAMETERS[name]
    assert profile_of(make).parameters == expected


def test_a_cbam_of_256_channels():
    for use_bias, expected in ((True, 8_564), (False, 8_292)):
        layer = layers.CBAM(use_bias=use_bias)
        layer.build((None, 8, 8, 256))
        assert sum(math.prod(w.shape) for w in layer.trainable_weights) == expected


def profile_of(make):
    return published_figures.profile_of(published_figures.Figure("", make))


def flops(make):
    return profile_of(make).flops / 1e9


def relative_logits(depth, side):
    """The products of queries with rows and columns, which some counts leave out, in GFLOPs."""
    maps = zip(BLOCKS[depth][1:], (side, 14, 7), strict=True)
    return sum(2 * blocks * n**2 * 2 * n * 160 for blocks, n in maps) / 1e9


def test_operations():
    assert flops(resnet(50)) == pytest.approx(8.178, abs=5e-4)
    for depth, convolutions, attention in ((26, 4.68, 4.48), (38, 6.43, 5.73), (50, 8.18, 6.97)):
        assert flops(resnet(depth)) == pytest.approx(convolutions, abs=6e-3)
        assert flops(local(depth)) == pytest.approx(attention, abs=6e-3)
    for depth, expected in ((34, 7.18), (50, 8.40), (101, 16.28), (152, 24.12)):
        total = flops(resnet(depth, "augmented"))
        assert total - relative_logits(depth, 14) == pytest.approx(expected, abs=6e-3)
    unpooled = flops(resnet(50, "augmented", attention_pool=1))
    assert unpooled - relative_logits(50, 28) == pytest.approx(9.37, abs=6e-3)
    # A stem with relative logits in its blocks, and whose mixing of values is free.
    pixels, window, channels = 224 * 224, 4 * 4, 64
    for depth, expected in ((26, 4.67), (38, 5.91), (50, 7.15)):
        profile = profile_of(local(depth, stem="attention"))
        (stem,) = (row.macs for row in profile.rows if row.name == "stem")
        counted = pixels * (6 * 3 * channels + 3 * window * channels)
        assert 2 * (profile.macs - stem + counted) / 1e9 == pytest.approx(expected, abs=6e-3)
    extra = flops(resnet(50, "cbam")) - flops(resnet(50))
    assert extra / 2 == pytest.approx(0.0064, abs=5e-5)


@pytest.mark.parametrize(
    ("published", "counted", "beyond"),
    [
        ("25.8 M", 25_849_999, False),
        ("25.8 M", 25_850_999, True),
        ("8.3 G*", 8_249_000_000, True),
        ("11,689,512", 11_689_512, False),
        ("11,689,512", 11_689_513, True),
    ],
)
def test_rounding(published, counted, beyond):
    assert published_figures.beyond_rounding(published, counted) is beyond
