"""The examples that `.ci/run` does not run by itself run to their end."""

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import exported
import keras
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_surgery_shows_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    import surgery

    arguments = ["--epochs", "1", "--images", "64", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["surgery.py", *arguments])
    surgery.main()
    table = capsys.readouterr().out.rpartition("network ")[-1]
    rows = {line[:14].strip(): line.split() for line in table.splitlines()[1:]}
    assert set(rows) == {"as it was", "CBAM", "augmented", "KerasCV, CBAM"}
    for name in ("CBAM", "KerasCV, CBAM"):
        *_, before, start, moved, _ = rows[name]
        assert before == start and float(moved) < 1e-5
    assert float(rows["augmented"][-2]) > 1e-3
    assert (tmp_path / "keras_cv.keras").is_file()


def test_explain_draws_photographs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    import explain

    arguments = ["--epochs", "1", "--pieces", "8", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["explain.py", *arguments])
    explain.main()
    table = capsys.readouterr().out.rpartition("network ")[-1].splitlines()[1:3]
    assert [line[:12].strip() for line in table] == list(explain.ATTENTIONS)
    drawn = {path.name for path in tmp_path.glob("*.webp")}
    names = ("grad_cam", "side_by_side")
    assert drawn == {f"{name}-{scheme}.webp" for name in names for scheme in ("light", "dark")}


@pytest.fixture
def evidence(monkeypatch, tmp_path):
    """The example on noise in the place of Fashion-MNIST, few of it, in this process."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import evidence

    draw = np.random.default_rng(0)
    split = draw.random((60, 28, 28, 1), "float32"), draw.integers(10, size=60).astype("int32")
    monkeypatch.setattr(evidence.fashion_mnist, "load", lambda *_: (split, split, range(10)))
    evidence.load.cache_clear()
    return evidence


def test_evidence_measures_a_run_and_writes_its_tables(evidence, tmp_path):
    form = evidence.Form(seeds=2, width=8, epochs=1, placed_epochs=1, placed_images=40)
    settings = evidence.Settings(form, tmp_path, tmp_path)
    tasks = [evidence.Task("fashion_mnist", "convolution", seed) for seed in (0, 1)]
    tasks += [evidence.Task("fashion_mnist", "squeeze-excite", seed) for seed in (0, 1)]
    tasks += [evidence.Task("placed", name, 0) for name in ("convolution", "CBAM")]
    path = tmp_path / "runs.csv"
    for task in tasks:
        evidence.add(evidence.run(task, settings), path)
    lines = evidence.evidence_report.read(path)
    assert [evidence.Task(*list(line.values())[:3]) for line in lines] == tasks
    assert 0 < lines[-1]["box_share"] < 0.5 and 0 < lines[-1]["gate_inside"] < 1
    page = tmp_path / "page.md"
    page.write_text(f"Before\n{evidence.evidence_report.HEADING}BEFORE")
    text = evidence.evidence_report.write(path, tmp_path, page)
    assert page.read_text().startswith("Before\n") and "BEFORE" not in page.read_text()
    assert "### Does a gate help?" in text and "### Where does it look?" in text
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        "differences-light.svg",
        "differences-dark.svg",
    }


def test_evidence_compares_by_students_t(evidence):
    accuracies = {"a": (0.90, 0.92), "b": (0.95, 0.97), "c": (0.91, 0.915)}
    lines = [
        {"variant": name, "accuracy": value, "parameters": 1, "macs": 1}
        for name, values in accuracies.items()
        for value in values
    ]
    first, b, c = evidence.evidence_report.comparisons(lines, "a", ["b", "c", "missing"])
    # pooled variance (2 + 2 + 0.125) / 3, Student's t 3.182 at 3 degrees of freedom
    assert np.isclose(b.margin, 3.182 * np.sqrt(4.125 / 3), rtol=1e-3)
    assert np.isclose(b.difference, 5) and b.verdict == "better"
    assert c.verdict == "not told apart" and first.verdict == ""


def test_every_question_names_its_networks(evidence):
    networks = evidence.evidence_networks
    asked = [name for first, others in networks.QUESTIONS.values() for name in (first, *others)]
    assert set(asked) == set(networks.VARIANTS) > networks.LONG
    for variant in networks.VARIANTS.values():
        assert networks.network(variant, (28, 28, 1), 10, width=8).output_shape == (None, 10)


def test_boxes_hold_the_articles(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import placed_clothes

    article = np.zeros((1, 28, 28, 1), "float32")
    article[:, 5:20, 8:13] = 1
    monkeypatch.setattr(placed_clothes, "backgrounds", lambda: [np.zeros((64, 64, 3), "float32")])
    images, _, boxes = placed_clothes.place(article, np.zeros(1), 1, seed=3)
    inside = placed_clothes.inside(boxes, images.shape)
    assert inside.sum() == 15 * 5
    np.testing.assert_array_equal(images[0].max(axis=-1) > 0, inside[0])


def test_fashion_mnist_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import fashion_mnist

    with pytest.raises(SystemExit, match=r"apt install dataset-fashion-mnist.*Received: data="):
        fashion_mnist.builder_of(tmp_path / "data", tmp_path)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="figures have no backend")
def test_figures_are_drawn_in_both_schemes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import benchmark_figures
    import figures

    records = [str(path) for path in sorted((EXAMPLES.parent / "docs/benchmarks").glob("*.json"))]
    write = ["--write", str(tmp_path)]
    for module, arguments in ((figures, write), (benchmark_figures, [*records, *write])):
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        module.main()
    drawn = {path.name for path in tmp_path.iterdir()}
    measured = [f"{what}-{axis}" for what in ("time", "memory") for axis in ("kernel_size", "side")]
    for name in (*figures.FIGURES, *measured):
        assert {f"{name}-light.svg", f"{name}-dark.svg"} <= drawn


def test_the_table_of_costs_is_the_readmes(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    import layer_costs

    records = EXAMPLES.parent / "docs" / "benchmarks" / "cpu.json"
    monkeypatch.setattr(sys, "argv", ["layer_costs.py", str(records)])
    layer_costs.main()
    assert capsys.readouterr().out in (EXAMPLES.parent / "README.md").read_text()


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="test_export.py has the others")
@pytest.mark.filterwarnings("ignore")  # of PyTorch's tracer, for each branch on a shape
def test_the_live_network_learns_and_is_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    import live_page

    arguments = ["--epochs", "1", "--images", "100", "--write", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["live_page.py", *arguments])
    live_page.main()
    *_, difference, _, _, _ = capsys.readouterr().out.split()
    assert float(difference) < 1e-4


@pytest.mark.filterwarnings("ignore")  # of the converters
@pytest.mark.parametrize("file_format", exported.OFFERED[keras.backend.backend()])
def test_an_exported_file_answers_and_is_served(file_format, tmp_path, monkeypatch, capsys):
    import export

    arguments = ["--format", file_format, "--epochs", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    export.main()
    printed, name = capsys.readouterr().out, export.FILES[file_format]
    assert printed.count("largest difference") == 3 and name in printed
    assert (tmp_path / name).exists()
    commands = [
        shlex.split(line.replace("runs/export", str(tmp_path)))
        for line in exported.PAGE.read_text().splitlines()
        if line.startswith("python -c") and f"runs/export/{name}'" in line
    ]
    assert len(commands) == 1
    for _, *arguments in commands:
        subprocess.run([sys.executable, *arguments], check=True)


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import soak

    return soak


def test_a_soak_keeps_to_its_bounds_and_notices_what_does_not(soak, monkeypatch):
    monkeypatch.setattr(soak, "POINTS", 2)
    backend = keras.backend.backend()
    setting = next(name for name, (known, _) in soak.SETTINGS.items() if known == backend)
    lines = io.StringIO()
    soak.soak(setting, "attention", steps=4, predictions=4, small=True, rows=lines)
    rows = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [row["done"] for row in rows] == [0, 2, 4, 0, 2, 4]
    found, shapes = soak.summaries(rows), soak.shapes_of(small=True)
    assert len(set(shapes)) == 2 and list(soak.broken(found, len(shapes))) == []
    most = {"tensorflow": soak.TRACES, "jax": len(shapes) + soak.OTHERS, "torch": 0}[backend]
    for changed, words in (
        ({"growth": soak.GROWTH + 1}, "adds 16.0 MiB"),
        ({"late_programs": 1}, "the second half compiles 1"),
        ({"programs": most + 1}, f"{most + 1} programs for 2 shapes"),
    ):
        (error,) = soak.broken([found[0], {**found[1], **changed}], len(shapes))
        assert words in error and "predict" in error
    if backend != "torch":
        for each in found:
            assert each["programs"] >= (len(shapes) if backend == "jax" else 1)


def test_the_table_of_the_soak_is_the_pages(soak, monkeypatch, capsys, tmp_path):
    guides = EXAMPLES.parent / "docs" / "guides"
    arguments = ["soak.py", "--records", str(guides / "long-runs.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    soak.main()
    assert capsys.readouterr().out in (guides / "long-runs.md").read_text()
    page = tmp_path / "page.md"
    page.write_text(f"Before {soak.MARKS[0]}OLD{soak.MARKS[1]} after")
    monkeypatch.setattr(sys, "argv", [*arguments, "--write", str(page)])
    soak.main()
    found = page.read_text()
    assert found.startswith("Before ") and found.endswith(" after") and "OLD" not in found
    record = json.loads((guides / "long-runs.json").read_text())
    assert list(soak.broken(soak.summaries(record["rows"]), record["shapes"])) == []
