import functools

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

from diffpolicy_rl.bundles.writing import write_bundle
from tests.bundles.families import ABOUT, deployment

# torch makes the table of its operators anew for every export, which takes half of a small one's time.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A complete bundle with a residual; not to be written to."""
    out = tmp_path_factory.mktemp("bundles") / "whole"
    write_bundle(out, deployment("residual_sac"), ABOUT)
    return out
