"""The commands export and verify, on a run and on bundles that were tampered with."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from diffpolicy_rl import export, load, train, verify
from diffpolicy_rl.bundles.checks import verify as checks
from diffpolicy_rl.bundles.examples import read_examples, write_examples
from diffpolicy_rl.bundles.graph import Deployment, export_graphs
from diffpolicy_rl.bundles.writing import write_bundle
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.runtime.bundle import load_bundle
from diffpolicy_rl.types import DeployedPolicy
from tests.bundles.families import ABOUT
from tests.training.tiny_run import tiny


class Awkward(DeployedPolicy):
    """A policy that no graph can express."""

    execute, noise_shape = 1, None

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, obs, noise):
        return self.act(obs)


def awkward(act):
    normalizers = Normalizer((2,)), Normalizer((2,))
    return Deployment(Awkward(act), (2,), *normalizers)


def half(obs):
    return obs[:, None] / 2


WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(name + " is blocked", name=name)
sys.meta_path.insert(0, Blocked())
"""


def blocked(code, *names):
    """Run code in a process of its own in which these packages cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_TORCH.format(blocked=set(names)) + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    changes = {"steps": 1, "net": tiny(folder).policy.net, "horizon": 4, "execute": 2}
    train.train(tiny(folder, "bc", policy=changes))
    return folder


@pytest.fixture(scope="module")
def exported(run):
    """The run's bundle, made by the command."""
    out, limits = run.parent / "made" / "bundle", run.parent / "limits.yaml"
    limits.write_text(yaml.safe_dump({"velocity": [1, 2, 3], "high": [2, 2, 2]}))
    words = ["names=hip,knee,foot", "units=Nm", f"limits={limits}", "name=hopping", "which=best"]
    export.main([str(run), f"out={out}", *words])
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def relist(bundle, name):
    """Let the manifest list a file as it is now."""
    path, content = bundle / "manifest.json", (bundle / name).read_bytes()
    tree = json.loads(path.read_text())
    for file in tree["files"]:
        if file["path"] == name:
            file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(tree))


def failing(bundle):
    """The name and the detail of what fails."""
    return [(check.name, check.detail) for check in checks(bundle) if not check.passed]


def test_a_bundle_of_a_run(run, exported):
    bundle = load_bundle(exported)
    manifest = bundle.manifest
    assert (manifest.name, manifest.algorithm, manifest.noise) == ("hopping", "BC", (4, 3))
    assert manifest.output.names == ("hip", "knee", "foot")
    assert manifest.output.units == "Nm"
    assert manifest.control.rate_hz == 125.0  # the hopper's 8 ms
    assert manifest.control.latency_budget_ms == 8.0  # half of its two actions' time
    assert (manifest.limits.low, manifest.limits.high) == ((-1.0, -1.0, -1.0), (2.0, 2.0, 2.0))
    assert manifest.limits.velocity == (1.0, 2.0, 3.0)
    assert {file.path for file in manifest.files} == {
        *("policy.onnx", "policy.safetensors", "examples.npz", "README.md", "run_policy.py"),
        *("parity.json", "latency.json", "evaluation.json"),
    }
    policy, noise = load(run, "best"), bundle.noise(5, np.random.default_rng(0))
    obs = np.random.default_rng(1).normal(size=(5, 11)).astype(np.float32)
    with torch.no_grad():
        wanted = policy(torch.from_numpy(obs), torch.from_numpy(noise)).numpy()
    np.testing.assert_allclose(bundle({"observation": obs}, noise), wanted, atol=1e-5)
    evaluation = json.loads((exported / "evaluation.json").read_text())
    assert evaluation["result"] == json.loads((run / "summary.json").read_text())["best"]
    _, block, card = (exported / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert metadata["library_name"] == "diffpolicy_rl"
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == round(evaluation["result"]["mean"], 3)
    assert "hip, knee, foot" in card
    assert str(run.parent) not in (exported / "manifest.json").read_text()


def test_a_bundle_of_a_student_says_who_taught_it_and_whether_it_is_as_good(tmp_path, capsys):
    folder, out = tmp_path / "student", tmp_path / "bundle"
    train.train(tiny(folder, "regress"))
    verdict = {"measure": "return", "difference": -9.0, "ci_low": -18.0, "ci_high": -1.0, "margin": 5.0}

    def made(passed, which="last"):
        if passed is not None:
            (folder / "distillation.json").write_text(json.dumps({"verdict": verdict | {"passed": passed}}))
        export.main([str(folder), f"out={out}", f"which={which}"])
        evaluation, card = json.loads((out / "evaluation.json").read_text()), (out / "README.md").read_text()
        return evaluation["distillation"], card, capsys.readouterr().err

    about = {"teacher": "teacher", "teacher_which": "last", "method": "Regress"}
    found, card, said = made(None)
    assert found == about | {"verdict": None}
    assert "A student of the run teacher (last) by Regress: this checkpoint was never compared with it." in card
    assert said == "warning: this is a student of teacher, but this checkpoint was never compared with it\n"
    found, card, said = made(False)
    assert found == about | {"verdict": verdict | {"passed": False}}
    assert "by Regress: student less teacher, return: -9.0, 95 % CI [-18.0, -1.0], margin 5.0: NOT SHOWN to be" in card
    assert said == "warning: this is a student of teacher, but it was not shown to be as good\n"
    found, card, said = made(True)
    assert found["verdict"]["passed"]
    assert "margin 5.0: not inferior." in card
    assert said == ""
    assert made(True, "best")[0]["verdict"] is None  # the last checkpoint is what was compared


def test_verify_passes_a_folder_and_a_zip(exported, tmp_path, capsys):
    verify.main([str(exported)])
    assert "passes" in capsys.readouterr().out
    shutil.make_archive(str(tmp_path / "bundle"), "zip", exported)
    assert failing(tmp_path / "bundle.zip") == []


def test_run_policy_needs_nothing_but_numpy_and_onnxruntime(exported, tmp_path):
    alone = Path(shutil.copytree(exported, tmp_path / "alone"))
    code = f"import runpy; runpy.run_path({str(alone / 'run_policy.py')!r}, run_name='__main__')"
    done = blocked(code, "torch", "onnx", "diffpolicy_rl", "gymnasium", "yaml")
    assert done.returncode == 0, done.stderr
    assert "hopping: largest difference" in done.stdout
    assert len((alone / "run_policy.py").read_text().splitlines()) < 150
    with (alone / "policy.onnx").open("ab") as file:
        file.write(b"x")
    assert "policy.onnx is not the file" in blocked(code, "torch").stderr


def test_the_runtime_never_imports_torch(exported):
    code = f"""
import numpy as np
from diffpolicy_rl.runtime.bundle import load_bundle
bundle = load_bundle({str(exported)!r})
print(bundle({{"observation": np.zeros((1, 11), np.float32)}}).shape)
assert not {{name.partition(".")[0] for name in sys.modules}} & {{"torch", "onnx", "gymnasium", "yaml"}}
"""
    done = blocked(code, "torch", "onnx", "gymnasium", "yaml", "jsonschema")
    assert done.stdout == "(1, 4, 3)\n", done.stderr


def test_verify_needs_no_torch_and_says_which_package_it_lacks(exported):
    code = f"from diffpolicy_rl import cli, verify; sys.argv = ['verify', {str(exported)!r}]; cli.run(verify.main)"
    done = blocked(code, "torch", "onnx", "gymnasium")
    assert done.stdout.endswith("passes\n"), done.stderr
    assert "error: verify needs jsonschema: pip install" in blocked(code, "jsonschema").stderr


@pytest.mark.parametrize("name", ["policy.onnx", "residual.onnx", "policy.safetensors", "examples.npz", "README.md"])
def test_verify_finds_any_changed_file(copy, name, capsys):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(SystemExit) as exit_:
        verify.main([str(copy)])
    assert exit_.value.code == 1
    assert f"FAIL  files     {name} is not the file" in capsys.readouterr().out


def test_verify_finds_what_hashes_do_not(copy, whole):
    examples, path = read_examples((whole / "examples.npz").read_bytes()), copy / "manifest.json"
    tree = json.loads(path.read_text())
    tree["control"]["latency_budget_ms"] = 1e4  # a busy machine is nothing that is looked for here
    path.write_text(json.dumps(tree))

    def changed(**arrays):
        write_examples(copy / "examples.npz", examples | arrays)
        relist(copy, "examples.npz")
        return failing(copy)

    assert changed() == []
    far = examples["actions"].copy()
    far[3, 0, 0] += 1e-3
    ((name, detail),) = changed(actions=far)
    assert name == "parity"
    assert "1e-05 is allowed" in detail
    off = examples["corrected"] + np.float32(1e-3)
    assert [name for name, _ in changed(corrected=off)] == ["parity"]
    assert [name for name, _ in changed(action_scale=np.zeros(2, np.float32))] == ["examples"]
    assert [name for name, _ in changed(noise=examples["noise"][:31])] == ["examples"]
    assert [name for name, _ in changed(**{key: examples[key][:31] for key in ("noise", "observation")})] == [
        "examples"
    ]
    assert changed() == []
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"limits": tree["limits"] | {"low": [50.0, 50.0], "high": [60.0, 60.0]}}))
    assert failing(copy) == [("limits", "100 % of the examples' actions lie outside low and high")]
    path.write_text(json.dumps(tree | {"control": tree["control"] | {"latency_budget_ms": 1e-4}}))
    ((name, detail),) = failing(copy)
    assert name == "latency"
    assert "but the budget is 0.0001 ms" in detail


def test_the_schema_says_what_the_reader_says(whole):
    import jsonschema

    schema = json.loads((Path(verify.__file__).parent / "bundles/manifest.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    tree = json.loads((whole / "manifest.json").read_text())
    assert validator.is_valid(tree)
    for place, value in (("noise", []), ("version", 2), ("graphs", {}), ("files", []), ("extra", 1), ("name", None)):
        assert not validator.is_valid(tree | {place: value}), place
    for group, members in (("control", tree["control"]), ("limits", tree["limits"]), ("output", tree["output"])):
        for name in members:
            assert not validator.is_valid(tree | {group: {k: v for k, v in members.items() if k != name}}), name


def test_only_bundles_are_replaced(run, tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "manifest.json").write_text('{"command": "a run has a manifest, too"}')
    file = tmp_path / "file"
    file.touch()
    for out in (taken, file, run):
        with pytest.raises(UserError, match="exists and is not a bundle; choose another out"):
            export.main([str(run), f"out={out}"])
    assert [path.name for path in taken.iterdir()] == ["manifest.json"]
    out = tmp_path / "made" / "bundle"
    write_bundle(out, awkward(half), ABOUT)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", lambda *_: os.stat("/nowhere"))  # fails half-way
        with pytest.raises(UserError, match=r"cannot write .*bundle: No such file"):
            write_bundle(out, awkward(half), dataclasses.replace(ABOUT, name="anew"))
    assert load_bundle(out).manifest.name == "tiny"
    assert list(out.parent.iterdir()) == [out]
    write_bundle(out, awkward(half), dataclasses.replace(ABOUT, name="anew"))
    assert load_bundle(out).manifest.name == "anew"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=b", "rate_hz=0"], "rate_hz=0.0 must be above 0"),
        (["out=b", "limits=missing.yaml"], "limits=missing.yaml cannot be read"),
        (["out=b", "which=never"], "has no checkpoint 'never'"),
        ([], "out must be given"),
    ],
)
def test_refusals(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as refusal:
        export.main([str(run), *words])
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def branching(obs):
    return obs[:, None] if obs.sum() > 0 else -obs[:, None]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (branching, r"Awkward cannot be exported because of test_export.py:\d+ \(return obs.* if obs.sum\(\) > 0"),
        (lambda obs: obs[:, None].expand(len(obs), 1, 2), "Awkward cannot be exported.*Constraints violated"),
        (
            lambda obs: torch.randn_like(obs[:, None]) + obs[:, None],
            "Awkward cannot be exported: .* draws random numbers",
        ),
        (lambda obs: (obs.double() * 2).float()[:, None], "Awkward cannot be exported: .* is in double precision"),
    ],
)
def test_what_cannot_be_exported_is_said_with_its_line(act, message):
    with pytest.raises(UserError, match=message) as refusal:
        export_graphs(awkward(act))
    assert "\n" not in str(refusal.value)


def test_a_bundle_that_would_not_be_sound_is_not_written(tmp_path):
    for wrong, message in (({"rate_hz": float("inf")}, "rate_hz"), ({"names": ("one",)}, "1 names for 2 entries")):
        with pytest.raises(UserError, match=f"no bundle can be made: manifest.json: .*{message}"):
            write_bundle(tmp_path / "out", awkward(half), dataclasses.replace(ABOUT, **wrong))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_not_what_torch_computes_is_not_written(tmp_path):
    def off(obs):
        return obs[:, None] / 2 + (1e-3 if torch.compiler.is_compiling() else 0.0)  # in the graph alone

    with pytest.raises(
        UserError, match=r"no bundle can be made: .*'actions' differs from torch's by 1\.0e-03, but 1e-05 is"
    ):
        write_bundle(tmp_path / "out", awkward(off), ABOUT)
    assert list(tmp_path.iterdir()) == []
