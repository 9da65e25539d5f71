from types import SimpleNamespace

import pytest
import yaml

from benchmarks import ledger, records, report, suites


@pytest.fixture
def suite_file(tmp_path, monkeypatch):
    """Write a suite where suites are looked for."""
    monkeypatch.setattr(suites, "resources", SimpleNamespace(files=lambda package: tmp_path))
    (tmp_path / "suite").mkdir()

    def write(name, **values):
        (tmp_path / "suite" / f"{name}.yaml").write_text(yaml.safe_dump(values))

    return write


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Results, a README and run folders of its own."""
    (tmp_path / "results").mkdir()
    for module in (ledger, records, report):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.chdir(tmp_path)
    return tmp_path
