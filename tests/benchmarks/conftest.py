from types import SimpleNamespace

import pytest
import yaml

from benchmarks import suites


@pytest.fixture
def suite_file(tmp_path, monkeypatch):
    """Write a suite where suites are looked for."""
    monkeypatch.setattr(suites, "resources", SimpleNamespace(files=lambda package: tmp_path))
    (tmp_path / "suite").mkdir()

    def write(name, **values):
        (tmp_path / "suite" / f"{name}.yaml").write_text(yaml.safe_dump(values))

    return write
