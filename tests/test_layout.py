"""The rules that hold the tree together: what is installed, what may import what, and what every function says."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ("agents", "configs", "envs")  # folders at the top that install inside the package
ENTRY = 'if __name__ == "__main__":'


def _sources():
    """Every Python file of the package by module name."""
    files = {path: path.relative_to(ROOT / "diffpolicy_rl") for path in (ROOT / "diffpolicy_rl").rglob("*.py")}
    for folder in SHARED:  # under their own name only, not again through the symbolic links
        files |= {path: path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")}
    found = {}
    for path, place in files.items():
        if path.is_relative_to(ROOT / "diffpolicy_rl") and place.parts[0] in SHARED:
            continue
        parts = ["diffpolicy_rl", *place.with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = _sources()
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def imports(name):
    """Modules that a module imports, anywhere in it, as full names."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in SOURCES else node.module for full in names}
    return found


def layer(name):
    return name.split(".")[1] if "." in name else ""


BASE = {"types", "errors", "cli", "streams"}
LAYERS = {
    "nets": BASE | {"nets"},
    "policies": BASE | {"nets", "policies"},
    "experience": BASE | {"nets", "policies", "experience"},
    "data": BASE | {"scripted", "nets", "policies", "experience", "data"},
    "agents": BASE | {"nets", "policies", "experience", "agents"},
    "envs": {"types", "errors", "envs"},
    "experts": BASE,
    "scripted": BASE | {"envs"},
    "runtime": {"runtime"},
    "configs": set(),
    "training": BASE | {"nets", "policies", "experience", "data", "envs", "training"},
    "bundles": BASE | {"nets", "policies", "training", "runtime", "bundles"},
} | dict.fromkeys(BASE, BASE)


@pytest.mark.parametrize("name", SOURCES)
def test_each_layer_imports_only_lower_ones(name):
    ours = {module for module in imports(name) if module.split(".")[0] == "diffpolicy_rl"}
    if layer(name) in LAYERS and not name.endswith(".__main__"):  # entry points see everything
        assert {layer(module) for module in ours} <= LAYERS[layer(name)]
    else:
        assert name == "diffpolicy_rl" or ENTRY in SOURCES[name].read_text(), f"{name} belongs to no layer"
    for module in ours:
        assert module in SOURCES, f"{name} imports {module}, which does not exist"
        assert ENTRY not in SOURCES[module].read_text(), f"{name} imports the entry point {module}"


@pytest.mark.parametrize("name", [name for name in SOURCES if layer(name) == "agents"])
def test_no_algorithm_imports_another(name):
    for module in imports(name):
        if layer(module) == "agents":
            assert module.rsplit(".", 1)[1].startswith("_"), f"{name} imports {module}"


@pytest.mark.parametrize("name", SOURCES)
def test_everything_is_documented_and_annotated(name):
    tree = TREES[name]
    assert ast.get_docstring(tree), f"{name} has no docstring"
    public = [tree]
    for scope in public:
        for node in scope.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name}: {node.name} has no docstring"
                public += [node] if isinstance(node, ast.ClassDef) else []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            bare = [arg.arg for arg in every if arg and arg.annotation is None and arg.arg not in ("self", "cls")]
            assert not bare, f"{name}: {node.name} leaves {bare} without a type"
            assert node.returns is not None, f"{name}: {node.name} does not say what it returns"


@pytest.mark.parametrize("name", SOURCES)
def test_no_retired_packages_and_no_long_files(name):
    assert not {module.split(".")[0] for module in imports(name)} & {"gym", "mujoco_py", "d4rl"}
    assert len(SOURCES[name].read_text().splitlines()) <= 300


def test_checkers_see_what_they_must():
    """The rules above would pass over an empty tree, too."""
    assert {"diffpolicy_rl.types", "diffpolicy_rl.agents.bc", "diffpolicy_rl.envs.tasks.hopper"} <= set(SOURCES)
    assert {"diffpolicy_rl.cli", "diffpolicy_rl.errors", "dataclasses"} <= imports("diffpolicy_rl.train")
    assert "diffpolicy_rl.training.session" in imports("diffpolicy_rl.train")  # inside a function


def test_every_folder_with_python_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in SOURCES.items()}
    assert sorted(folders) == sorted(settings["packages"])
    assert settings["package-dir"] == {"diffpolicy_rl": "diffpolicy_rl"} | {f"diffpolicy_rl.{f}": f for f in SHARED}


def test_a_clone_has_the_same_names():
    for folder in SHARED:
        assert os.readlink(ROOT / "diffpolicy_rl" / folder) == f"../{folder}"


def test_wheel(tmp_path):
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("diffpolicy_rl", *SHARED):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignore)
    for file in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / file, source)
    (source / "README.md").touch()
    for folder in ("tests", "benchmarks", "runs"):  # what a clone has beside the package
        (source / folder).mkdir()
        (source / folder / "stray.py").touch()
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for name in names:
            if name.endswith(".hdf5"):
                assert archive.read(name) == (ROOT / name).read_bytes()
    assert len(names) == len(set(names))
    top = {name.split("/")[0] for name in names}
    assert {entry for entry in top if not entry.endswith(".dist-info")} == {"diffpolicy_rl"}
    assert len(top) == 2
    expected = {f"diffpolicy_rl/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "diffpolicy_rl/data/demos").glob("*.hdf5")}
    expected.add("diffpolicy_rl/bundles/manifest.schema.json")
    for path in SOURCES.values():
        place = str(path.relative_to(ROOT))
        expected.add(place if place.startswith("diffpolicy_rl/") else f"diffpolicy_rl/{place}")
    installed = {name for name in names if name.startswith("diffpolicy_rl/")}
    assert installed == expected | {"diffpolicy_rl/py.typed"}
