"""What the README says can be typed."""

import re
import shlex
from pathlib import Path

import pytest

from diffpolicy_rl import cli, collect, distill, evaluate, export, serve, train, verify

README = (Path(__file__).parents[1] / "README.md").read_text()
# What --cfg job says where it uses other words.
SHOWN = {"lerobot": "chiunet1d", "2e-4": "0.0002", "500_000": "500000", "paper": "env_steps: 80000000"}
COMMANDS = re.findall(r"^python -m diffpolicy_rl\.([\w.]+) ?([^#\n]*)", README, re.MULTILINE)
CONFIGS = {
    "evaluate": evaluate.EvaluateConfig,
    "collect": collect.CollectConfig,
    "distill": distill.DistillConfig,
    "export": export.ExportConfig,
    "verify": verify.VerifyConfig,
    "serve": serve.ServeConfig,
}
POSITIONAL = {"verify": "bundle", "serve": "bundle"}


@pytest.mark.parametrize(("module", "words"), COMMANDS)
def test_commands_are_understood(module, words, capsys):
    argv = shlex.split(words)
    if module == "train" and "--help" not in argv and not words.startswith("resume"):
        train.main([*argv, "--cfg", "job"])
        shown = capsys.readouterr().out.lower()
        for word in argv:
            value = word.rpartition("=")[2]
            assert SHOWN.get(value, value) in shown
    elif module in CONFIGS:
        assert cli.parse(CONFIGS[module], argv, "", POSITIONAL.get(module, "run"))
    else:
        assert module in ("train", "data", "runtime.examples.mujoco_robot")


def test_readme_shows_every_kind_of_command():
    assert {module for module, _ in COMMANDS} >= {"train", "evaluate", "collect", "data"}


def test_every_agent_has_a_row():
    table = README.partition("## Agents")[2].partition("##")[0]
    for name in train.options("agent"):
        assert f"| `{name}` |" in table or name == "custom"


def test_links_inside_the_project_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link


def test_test_command_is_the_one_that_ci_runs():
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    assert "<!-- test -->" in script
    block = README.partition("<!-- test -->")[2].partition("<!-- /test -->")[0]
    assert 'pip install -e ".[dev]" -c constraints.txt' in block
    assert "pytest" in block
