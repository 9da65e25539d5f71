"""Bundles that were made to do harm do none, and are refused in one sentence."""

import dataclasses
import hashlib
import io
import json
import pickle
import shutil
import stat
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from diffpolicy_rl.bundles.checks import verify
from diffpolicy_rl.bundles.examples import read_examples
from diffpolicy_rl.runtime.bundle import load_bundle
from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.manifest import read_manifest

TOUCHED = Path("a-bundle-ran-this")


class Harmful:
    def __reduce__(self):
        return Path.touch, (TOUCHED,)


@pytest.fixture
def bundle(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


@pytest.fixture(autouse=True)
def _inert(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not TOUCHED.exists()


def edit(bundle, change):
    """Change the manifest's tree."""
    path = bundle / "manifest.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def replace(bundle, name, content):
    """Put a file in, and list it as it is."""
    (bundle / name).write_bytes(content)

    def listed(tree):
        entry = {"path": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        tree["files"] = [file for file in tree["files"] if file["path"] != name] + [entry]

    edit(bundle, listed)


def with_graph(bundle, change):
    """Change the policy's graph, and list it as it is."""
    model = onnx.load(bundle / "policy.onnx")
    change(model)
    replace(bundle, "policy.onnx", model.SerializeToString())


def refused(path, message):
    """Loading and verifying refuse, in one sentence, and without reading more than there is."""
    tracemalloc.start()
    with pytest.raises(BundleError, match=message) as refusal:
        load_bundle(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
    *_, last = verify(path)
    assert not last.passed


def zipped(bundle, target, **extra):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in bundle.iterdir():
            archive.write(file, file.name)
        for name, content in extra.items():
            archive.writestr(name.replace("__", "/").replace("DOTS", ".."), content)
    return target


def test_pickles(bundle, tmp_path):
    harm = pickle.dumps(Harmful())
    (bundle / "weights.pkl").write_bytes(harm)
    refused(bundle, "holds weights.pkl, which its manifest.json does not list")
    replace(bundle, "weights.pkl", harm)
    refused(bundle, "lists weights.pkl, a kind of file that no bundle holds")
    edit(bundle, lambda tree: tree["files"].pop())
    (bundle / "weights.pkl").unlink()
    replace(bundle, "policy.onnx", harm)
    refused(bundle, "policy.onnx is not an ONNX model")


def test_what_python_compiles_beside_a_bundle(bundle, tmp_path):
    (bundle / "__pycache__").mkdir()
    (bundle / "__pycache__" / "run_policy.cpython-312.pyc").write_bytes(b"x")
    load_bundle(bundle)
    assert all(check.passed for check in verify(bundle))
    shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle)
    refused(tmp_path / "bundle.zip", "which its manifest.json does not list")
    replace(bundle, "__pycache__/harm.py", b"x")
    refused(bundle, "lacks __pycache__/harm.py")
    (bundle / "folder" / "__pycache__").mkdir(parents=True)
    edit(bundle, lambda tree: tree["files"].pop())
    (bundle / "folder" / "__pycache__" / "run_policy.pyc").write_bytes(b"x")
    refused(bundle, "holds folder/__pycache__/run_policy.pyc, which its manifest.json does not list")


def test_object_arrays(bundle):
    file = io.BytesIO()
    np.savez(file, actions=np.array([Harmful()], dtype=object), allow_pickle=True)
    replace(bundle, "examples.npz", file.getvalue())
    *_, last = verify(bundle)
    assert last.name == "examples"
    assert "holds object, not plain numbers" in last.detail


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../outside.onnx", "a/../../b.onnx", "C:\\x", "a//b", ".hidden", "a\n"]
)
def test_paths_that_leave_the_bundle(bundle, tmp_path, path):
    edit(bundle, lambda tree: tree["files"][0].update(path=path))
    refused(bundle, "is not the path of a file inside a bundle")


def test_zips_that_write_elsewhere(bundle, tmp_path):
    load_bundle(zipped(bundle, tmp_path / "sound.zip"))
    refused(zipped(bundle, tmp_path / "up.zip", DOTS__evil="x"), r"'../evil' is not the path")
    refused(zipped(bundle, tmp_path / "root.zip", __evil="x"), r"'/evil' is not the path")
    link = zipfile.ZipInfo("README.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    (bundle / "README.md").unlink()
    with zipfile.ZipFile(zipped(bundle, tmp_path / "link.zip"), "a") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "link.zip", "README.md is a link or encrypted")


def test_zip_bombs(bundle, tmp_path):
    zeros = bytes(100_000_000)
    replace(bundle, "README.md", zeros)
    refused(zipped(bundle, tmp_path / "bomb.zip"), "unpacks to 100.* bytes from")
    (tmp_path / "torn.zip").write_bytes((tmp_path / "bomb.zip").read_bytes()[:5000])
    refused(tmp_path / "torn.zip", "neither a folder nor a sound zip")


def test_links(bundle, tmp_path):
    shutil.move(bundle / "policy.onnx", tmp_path / "elsewhere.onnx")
    (bundle / "policy.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    refused(bundle, "policy.onnx is a link or a device")


def test_missing_and_changed_files(bundle):
    original = (bundle / "policy.onnx").read_bytes()
    (bundle / "policy.onnx").write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    refused(bundle, "policy.onnx is not the file that manifest.json lists: its hash or size differs")
    (bundle / "policy.onnx").write_bytes(original + b"x")
    refused(bundle, r"policy.onnx has \d+ bytes, but manifest.json says")
    (bundle / "policy.onnx").unlink()
    refused(bundle, "lacks policy.onnx")
    shutil.rmtree(bundle)
    refused(bundle, "cannot be read: No such file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04pickle", "manifest.json is not JSON"),
        (b"[" * 100_000, "manifest.json is not JSON"),
        (b"[1, 2]", "not that of a policy bundle"),
        (b'{"format": "other"}', "not that of a policy bundle"),
        (b'{"format": "diffpolicy_rl.bundle", "version": 2}', "has format version 2, this version reads 1"),
        (b'{"format": "diffpolicy_rl.bundle", "version": true}', "has format version True"),
        (b'{"format": "diffpolicy_rl.bundle", "version": 1}', "must have exactly the members name, algorithm"),
        (b" " * (1 << 20) + b"{}", "manifest.json is larger than 1048576 bytes"),
    ],
)
def test_manifests_that_are_none(bundle, content, message):
    (bundle / "manifest.json").write_bytes(content)
    refused(bundle, message)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("name", 3, "name must be a text"),
        ("control.rate_hz", "fast", "control.rate_hz must be a finite number"),
        ("control.rate_hz", float("nan"), "control.rate_hz must be a finite number"),
        ("control.rate_hz", 10**400, "control.rate_hz must be a finite number"),
        ("control.rate_hz", 0, "rate_hz, latency_budget_ms and stale_after_ms of control must be above 0"),
        ("control.execute", 5, "of which between one and all are executed"),
        ("control.horizon", 2.0, "control.horizon must be a whole number"),
        ("control.extra", 1, "control must have exactly the members"),
        ("noise", [2**40, 2**40], r"noise has a shape that no policy has: \[1099511627776, 1099511627776\]"),
        ("noise", [], "noise has a shape that no policy has"),
        ("output.shape", [4, -2], "actions has a shape that no policy has"),
        ("output.dtype", "object", "actions has the dtype object"),
        ("output.names", ["only one"], "actions has 1 names for 2 entries"),
        ("inputs", [], "inputs and output need names of their own"),
        ("limits.low", [0.0], "limits.low has 1 entries, actions have 2"),
        ("limits.low", [5.0, 5.0], "low < high"),
        ("limits.velocity", [1.0, 0.0], "limits.velocity must be above 0"),
        ("limits.workspace", [[0.0], [1.0, 2.0]], "low < high, and the workspace's corners"),
        ("graphs", {}, "graphs has no policy"),
        ("graphs.policy", "run_policy.py", "graphs.policy must be an .onnx listed in files"),
        ("graphs.other", "policy.onnx", "graphs.other must be an .onnx listed in files; known: policy"),
        ("files", [{"path": "a.md", "bytes": 1, "sha256": "0" * 64}] * 2, "files lists a path twice"),
        ("files", [{"path": "a.md", "bytes": -1, "sha256": "0" * 64}], "must have a size and a SHA-256"),
        ("source", {"a": 1}, "source.a must be a text"),
    ],
)
def test_manifests_that_say_what_cannot_be(bundle, place, value, message):
    *groups, name = place.split(".")

    def change(tree):
        for group in groups:
            tree = tree[group]
        tree[name] = value

    edit(bundle, change)
    refused(bundle, message)


def external(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def huge(model):
    tensor = model.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend([2**40, 2**40])


def expanding(model):
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**33, 1000]), "far"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["far"], ["unused"]))


def constant(*entries):
    """A shape as a node gives it."""
    return helper.make_node("Constant", [], [f"far{len(entries)}"], value=numpy_helper.from_array(np.array(entries)))


def adding(*nodes):
    return lambda model: model.graph.node.extend(nodes)


def node(operator, *inputs, **attributes):
    return helper.make_node(operator, inputs, [f"made by {operator}"], **attributes)


def renamed(model):
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "state" if name == "observation" else name
    model.graph.input[0].name = "state"


def frozen(model):
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2


def nested(model):
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=inner))


GRAPHS = {
    external: r"keeps tensors in other files \(external data\)",
    huge: r"has a tensor of shape \[1099511627776, 1099511627776\] with data for a small part",
    expanding: r"makes a tensor of an absurd shape \(ConstantOfShape to",
    renamed: r"takes .*state.*, but manifest.json says observation",
    frozen: r"takes observation \[2, 3\].*, but manifest.json says observation \['B', 3\]",
    nested: "has graphs inside its graph",
    lambda model: model.graph.node.append(helper.make_node("Evil", [], ["x"], domain="com.evil")): "of 'com.evil'",
    lambda model: model.opset_import.append(helper.make_opsetid("com.microsoft", 1)): "of 'com.microsoft'",
    lambda model: model.graph.node.append(
        helper.make_node("RandomNormal", [], ["x"], shape=[1])
    ): "draws random numbers",
    adding(node("Missing")): "uses the operator 'Missing', which no exported policy needs",
    adding(node("Resize", "observation")): "uses the operator 'Resize'",
    adding(node("Relu")): "onnxruntime refuses policy.onnx",
    adding(constant(2**33, 9), node("ConstantOfShape", "far2")): r"an absurd shape \(ConstantOfShape to",
    adding(node("Constant", value_ints=[2**33]), node("Expand", "observation", "made by Constant")): "absurd.*Expand",
    adding(constant(2**20), node("Mul", "far1", "far1"), node("ConstantOfShape", "made by Mul")): "absurd.*OfShape",
    adding(
        *(constant(2**30), node("Shape", "observation"), node("Mul", "far1", "made by Shape")),
        node("ConstantOfShape", "made by Mul"),
    ): "absurd.*OfShape",
    adding(
        constant(2**20), node("Add", "far1", "far1"), node("Tile", "observation", "made by Add")
    ): "computes a shape",
    adding(constant(2**20, 9), node("Concat", "far2", "far2", axis=0), node("Expand", "x", "made by Concat")): "absurd",
    adding(
        constant(2**9), constant(0, 0, 0, 0), node("Gather", "far1", "far4"), node("Expand", "x", "made by Gather")
    ): ("absurd.*Expand"),
    adding(constant(1), constant(1, 2**40), node("Range", "far1", "far2", "far1")): "absurd.*Range",
    adding(constant(1), node("Range", "far1", "far1", "observation")): "computes a shape",
    adding(constant(0, 2**30, 0, 0), node("Pad", "observation", "far4")): "absurd.*Pad",
    adding(constant(1, 2**21), node("Tile", "observation", "far2")): "absurd.*Tile",
    adding(node("AveragePool", "x", kernel_shape=[1], pads=[0, 2**40])): r"absurd shape \(AveragePool with huge attr",
    adding(
        constant(-1), node("Cast", "far1", to=TensorProto.UINT32), node("Expand", "x", "made by Cast")
    ): "computes a",
    adding(constant(1), constant(1)): "computes a value twice",
    adding(constant(1), node("Gather", "far1")): "onnxruntime refuses policy.onnx",
    lambda model: model.graph.Clear(): "onnxruntime refuses policy.onnx|takes nothing",
}


@pytest.mark.parametrize("change", GRAPHS)
def test_graphs(bundle, change):
    with_graph(bundle, change)
    refused(bundle, GRAPHS[change])


def test_shapes_of_a_batch(bundle):
    """What exporters make of a batch, counted or with its candidates, is no absurd shape."""
    shape = helper.make_node("Shape", ["observation"], ["shape"])
    rows, sixteen = numpy_helper.from_array(np.array([0]), "first"), numpy_helper.from_array(np.array([16]), "many")

    def change(model):
        model.graph.initializer.extend([rows, sixteen])
        model.graph.node.extend(
            [
                shape,
                node("Gather", "shape", "first"),
                node("Mul", "many", "made by Gather"),
                node("Concat", "made by Mul", "many", axis=0),
                node("ConstantOfShape", "made by Concat"),
            ]
        )

    with_graph(bundle, change)
    assert load_bundle(bundle)({"observation": np.zeros((2, 3), np.float32)}).shape[0] == 2


def test_graphs_cut_anywhere(bundle):
    content = (bundle / "policy.onnx").read_bytes()
    for length in range(0, len(content), 997):
        replace(bundle, "policy.onnx", content[:length])
        with pytest.raises(BundleError):
            load_bundle(bundle)


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_examples_that_claim_more_than_they_hold():
    sound = npz(actions=np.zeros((2, 3), np.float32))
    assert read_examples(sound)["actions"].shape == (2, 3)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**40)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("actions.npy", header.getvalue() + b"1234")
    with pytest.raises(BundleError, match=r"claims the shape .*, but has 4 bytes"):
        read_examples(file.getvalue())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("actions.npy", bytes(300_000_000))
    with pytest.raises(BundleError, match="hold more than"):
        read_examples(file.getvalue())
    for broken in (sound[:100], b"PK", npz(text=np.array(["a"]))):
        with pytest.raises(BundleError):
            read_examples(broken)


def test_manifest_round_trip(whole, tmp_path):
    from diffpolicy_rl.runtime.manifest import write_manifest

    manifest = read_manifest(whole)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert manifest.limits.high == (2.0, 4.0)
    assert manifest.control.stale_after_ms == 40.0  # two periods of 50 Hz
    assert manifest.control.latency_budget_ms == 10.0  # half of one, because every action is corrected
    nonsense = dataclasses.replace(manifest.control, rate_hz=float("nan"))
    with pytest.raises(BundleError, match=r"control\.rate_hz must be a finite number"):
        write_manifest(tmp_path, dataclasses.replace(manifest, control=nonsense))
    with pytest.raises(BundleError, match=r"it has no readable manifest\.json"):
        read_manifest(tmp_path / "nowhere")
