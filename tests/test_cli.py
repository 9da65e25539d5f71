import dataclasses
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from diffpolicy_rl import cli
from diffpolicy_rl.collect import CollectConfig
from diffpolicy_rl.errors import UserError, did_you_mean
from diffpolicy_rl.evaluate import EvaluateConfig
from diffpolicy_rl.train import ResumeConfig
from diffpolicy_rl.training.config import BudgetConfig, TrainConfig


@dataclass(frozen=True)
class Inner:
    """Nested.

    Attributes:
        depth: how deep.
    """

    depth: int = 3


@dataclass(frozen=True)
class Settings:
    """Do something.

    Attributes:
        run: the run folder.
        count: how many.
        rate: how fast.
        wide: whether wide.
        limit: at most, if given.
        widths: of the layers.
        mode: how.
        inner: nested.
        options: more.
        colour: by name.
    """

    run: str
    count: int = 1
    rate: float = 0.5
    wide: bool = False
    limit: float | None = None
    widths: tuple[int, ...] = (1, 2)
    mode: Literal["mean", "sum"] = "mean"
    inner: Inner = field(default_factory=Inner)
    options: dict[str, Any] = field(default_factory=dict)
    colour: dict[str, Any] = field(default_factory=lambda: {"name": "red"})


USAGE = "python -m toy RUN [key=value ...]"


def parse(*words):
    return cli.parse(Settings, words, USAGE, "run")


def refused(*words):
    with pytest.raises(UserError) as caught:
        parse(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("count=12", 12),
        ("count=-1_000", -1000),
        ("count=1e6", 1_000_000),
        ("count=9007199254740993", 9007199254740993),  # 2**53 + 1 is no double
        ("rate=3e-4", 3e-4),
        ("wide=True", True),
        ("limit=2.5", 2.5),
        ("limit=null", None),
        ("widths=64,32", (64, 32)),
        ("widths=[64, 32]", (64, 32)),
        ("widths=64", (64,)),
        ("widths=[]", ()),
        ("mode=sum", "sum"),
        ("run=a/b=c", "a/b=c"),
    ],
)
def test_text_to_type(word, value):
    name = word.partition("=")[0]
    parsed = getattr(parse(word) if name == "run" else parse("r", word), name)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("count=1.5", "count=1.5 is not a whole number"),
        ("rate=fast", "rate=fast is not a number"),
        ("wide=yes", "wide=yes is not true or false"),
        ("limit=no", "limit=no is not a number"),
        ("widths=1,x", "widths=x is not a whole number"),
        ("mode=summ", "mode=summ is not a choice; did you mean 'sum'?"),
        ("options=3", "options=3 is not a group of settings"),
        ("inner=3", "inner=3 is not a group of settings; set its members, as in inner.key=value"),
        ("cuont=3", "there is no setting cuont; did you mean 'count'?"),
        ("nothing=3", "there is no setting nothing; known: colour, count, inner, "),
        ("other", "'other' is not of the form key=value; usage: python -m toy"),
        ("run=s", "run is given twice"),
    ],
)
def test_wrong_words(word, message):
    assert message in refused("r", word)


def test_required_duplicate_and_positional():
    assert refused() == "run must be given: the run folder."
    assert refused("r", "count=1", "count=1") == "count is given twice"
    assert parse("r", "count=2") == parse("count=2", "r") == parse("run=r", "count=2") == Settings("r", 2)
    with pytest.raises(UserError, match="'r' is not of the form key=value"):
        cli.parse(Settings, ["r"], USAGE)


def test_yaml_values():
    built = cli.build(Settings, {"run": "r", "widths": [3], "inner": {"depth": "4"}, "limit": None, "rate": 1})
    assert built == Settings("r", widths=(3,), inner=Inner(4), rate=1.0)
    assert cli.build(Settings, {"run": "r", "inner": None, "options": {"a": 1}}).options == {"a": 1}
    assert cli.build(Settings, {"run": "r", "widths": 3}).widths == (3,)
    # a group keeps the defaults of what is not given
    assert cli.build(Settings, {"run": "r", "colour": {"shade": 2}}).colour == {"name": "red", "shade": 2}
    assert cli.build(Settings, {"run": "r", "colour": {"name": "blue"}}).colour == {"name": "blue"}


def test_wrong_yaml_values():
    for values, message in (
        ({"inner": {"dept": 3}}, "there is no setting agent.inner.dept; did you mean 'depth'?"),
        ({"inner": [3]}, "agent.inner=[3] is not"),
        ({"count": True}, "agent.count=True is not a whole number"),
        ({"count": [1]}, "agent.count=[1] is not a whole number"),
        ({"count": None}, "agent.count=None is not a whole number"),
        ({"widths": 3.5}, "agent.widths=3.5 is not a whole number"),
        ({3: 4}, "there is no setting agent.3"),
    ):
        with pytest.raises(UserError) as caught:
            cli.build(Settings, {"run": "r", **values}, "agent.")
        assert message in str(caught.value)


@pytest.mark.parametrize("config", [Settings, CollectConfig, EvaluateConfig, ResumeConfig, BudgetConfig, TrainConfig])
def test_every_field_is_documented_and_in_the_help(config):
    docs, text = cli.field_docs(config), cli.help_text(config, USAGE)
    assert list(docs) == [entry.name for entry in dataclasses.fields(config)]
    for name, doc in docs.items():
        assert [line for line in text.splitlines() if line.strip().startswith(name) and line.endswith(doc)], name


def test_help_prints_and_exits(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help", "nonsense=1")
    assert not caught.value.code
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: {USAGE}\n\nDo something.\n")
    assert "  count=1                          how many." in printed
    assert "MISSING" not in printed


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [(UserError("it is so"), 2, "error: it is so\n"), (KeyboardInterrupt(), 130, ""), (SystemExit(7), 7, "")],
)
def test_exit_status(monkeypatch, capsys, error, status, message):
    def main(argv):
        assert argv == ["a=1"]
        raise error

    monkeypatch.setattr(sys, "argv", ["toy", "a=1"])
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == status
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("module", ["evaluate", "collect", "data"])
def test_commands_fail_in_one_sentence(module):
    command = [sys.executable, "-m", f"diffpolicy_rl.{module}", "nothing", "there"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_nothing_half_written_stays_when_a_command_is_terminated(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from diffpolicy_rl import cli
from diffpolicy_rl.data.files import new_folder

def main(argv):
    with new_folder(Path({str(tmp_path)!r}) / "out") as folder:
        (folder / "half").touch()
        os.kill(os.getpid(), signal.SIGTERM)

cli.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    assert list(tmp_path.iterdir()) == []


def test_did_you_mean():
    assert did_you_mean("hoper", ["walker", "hopper"]) == "did you mean 'hopper'?"
    assert did_you_mean("x", ["walker", "hopper"]) == "known: hopper, walker"
    assert did_you_mean("x", []) == "known: none"
