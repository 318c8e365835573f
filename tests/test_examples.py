"""The examples that `.ci/run` does not run by itself run to their end."""

import sys
from pathlib import Path

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
