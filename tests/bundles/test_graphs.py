"""Every family of deployed policies as graphs: what onnxruntime computes is what torch computes."""

import functools

import numpy as np
import onnx
import pytest
import torch

from diffpolicy_rl.bundles.graph import double_precision, export_graphs
from diffpolicy_rl.bundles.parity import measure_parity
from diffpolicy_rl.bundles.writing import manifest_of
from diffpolicy_rl.runtime.bundle import Bundle
from diffpolicy_rl.runtime.errors import BundleError
from tests.bundles.families import ABOUT, FAMILIES, deployment

NOISE = {
    **dict.fromkeys(("ppo", "sac", "dsrl-na", "td3_bc"), None),
    **dict.fromkeys(("bc", "dppo", "reinflow", "residual_sac", "resip"), (4, 2)),
    **dict.fromkeys(("fql",), (2, 2)),
    **dict.fromkeys(("idql", "fisor", "expo"), (16, 2, 2)),
    "dql": (32, 2, 2),  # one that draws among the others
    "dsrl-sac": (1, 2),  # one vector for the whole chunk
    "pa_rl": (8, 2, 2),
}
EXTRA = {"residual": ("residual_sac", "resip"), "score": ("expo", "pa_rl", "dql", "idql", "fisor")}


@functools.cache
def exported(name):
    made = deployment(name)
    graphs = export_graphs(made)
    manifest = manifest_of(made, ABOUT, graphs.contents, graphs.noise, graphs.horizon)
    return made, graphs, Bundle(manifest, graphs.contents)


@pytest.mark.parametrize("name", FAMILIES)
def test_parity(name):
    made, graphs, bundle = exported(name)
    assert graphs.noise == NOISE[name]
    assert set(graphs.contents) == {"policy", *(graph for graph, names in EXTRA.items() if name in names)}
    outputs = measure_parity(made, bundle).report["outputs"]
    assert len(outputs) == len(graphs.contents)
    for found in outputs.values():
        assert found["onnx_torch"]["max"] <= 1e-5
        assert found["onnx_torch_float64"]["max"] <= 1e-5
        assert found["batch_1_batch_64"]["max"] <= 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_graphs_are_single_files_of_single_precision(name):
    for content in exported(name)[1].contents.values():
        model = onnx.load_model_from_string(content)
        assert double_precision(model) == []
        assert not any(
            attribute.i == onnx.TensorProto.DOUBLE
            for node in model.graph.node
            for attribute in node.attribute
            if attribute.name in ("to", "dtype")
        )
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        assert {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input} == {"batch"}
        assert b".py" not in content  # nothing of where it was made


def test_one_robots_plan_is_a_batch_of_one():
    _, _, bundle = exported("reinflow")
    rng = np.random.default_rng(0)
    obs, noise = rng.normal(size=3).astype(np.float32), bundle.noise(1, rng)
    assert np.array_equal(bundle.plan({"observation": obs}, noise[0]), bundle({"observation": obs[None]}, noise)[0])
    assert bundle.plan({"observation": obs}).shape == (4, 2)


def test_what_is_chosen_has_the_highest_score():
    """The candidates one by one, by a graph of M equal ones: none is scored above the one chosen among all."""
    _, _, bundle = exported("idql")
    rng = np.random.default_rng(0)
    obs, noise = {"observation": rng.normal(size=(8, 3)).astype(np.float32)}, bundle.noise(8, rng)
    assert noise is not None
    scores = [
        bundle.score(obs, bundle(obs, np.repeat(noise[:, i : i + 1], noise.shape[1], axis=1)))
        for i in range(noise.shape[1])
    ]
    np.testing.assert_allclose(bundle.score(obs, bundle(obs, noise)), np.max(scores, axis=0), rtol=1e-5)
    assert np.ptp(scores, axis=0).min() > 1e-3


def test_a_residual_is_asked_about_the_action_that_was_planned():
    made, _, bundle = exported("residual_sac")
    rng = np.random.default_rng(1)
    obs, action = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float32)
    with torch.no_grad():
        wanted = made.policy.correct(torch.from_numpy(obs), torch.from_numpy(action)).numpy()
    np.testing.assert_allclose(bundle.correct({"observation": obs}, action), wanted, atol=2e-6)
    assert np.abs(wanted - action).max() > 1e-3


def test_what_a_bundle_is_asked_must_fit():
    _, _, bundle = exported("reinflow")
    obs = np.zeros((4, 3), np.float32)
    assert bundle({"observation": obs, "prompt": "ignored"}).shape == (4, 4, 2)
    assert bundle({"observation": obs.astype(np.float64)}).dtype == np.float32
    zeros = np.zeros((4, 4, 2), np.float32)
    assert np.array_equal(bundle({"observation": obs}), bundle({"observation": obs}, zeros))
    for asked, message in (
        ({}, "'observation' is missing"),
        ({"observation": obs[:, :2]}, r"must be float32 of shape \(B, 3\), not float32 of shape \(4, 2\)"),
        ({"observation": obs[0]}, r"shape \(B, 3\), not float32 of shape \(3,\)"),
        ({"observation": 3.0}, r"shape \(B, 3\)"),
        ({"observation": obs.astype(object)}, "not object"),
        ({"observation": obs.astype("S")}, "must be float32"),
        ({"observation": [[1.0], [1.0, 2.0]]}, "is no array"),
    ):
        with pytest.raises(BundleError, match=message):
            bundle(asked)
    with pytest.raises(BundleError, match="different numbers of rows: observation 4, noise 3"):
        bundle({"observation": obs}, zeros[:3])
    with pytest.raises(BundleError, match="has no graph 'residual'; it has policy"):
        bundle.correct({"observation": obs}, np.zeros((4, 2), np.float32))
    with pytest.raises(BundleError, match="has no graph 'score'"):
        bundle.score({"observation": obs}, zeros)
