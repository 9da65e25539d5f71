"""From the words of a command line to settings: Hydra is used here and nowhere else."""

import itertools
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpolicy_rl.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from diffpolicy_rl.training.config import TrainConfig

GROUPS = ("agent", "env", "data", "policy", "net", "budget")
_CONFIGS = "diffpolicy_rl.configs"


def options(group: str) -> dict[str, str]:
    """Name and first comment line of every option of a config group; reads files only, so that it is fast."""
    return {name: _summary(text) for name, text in _files(group).items()}


def _summary(text: str) -> str:
    """The first comment line of a file, but Hydra's own, which must precede it."""
    return next(line for line in text.splitlines() if not line.startswith("# @")).removeprefix("# ")


def _files(group: str) -> dict[str, str]:
    entries = resources.files(_CONFIGS).joinpath(group).iterdir()
    files = {entry.name: entry.read_text() for entry in entries if entry.name.endswith(".yaml")}
    return {name.removesuffix(".yaml"): files[name] for name in sorted(files)}


def compose(words: Sequence[str], sweep: bool) -> "list[TrainConfig]":
    """The settings that ``key=value`` words describe.

    Args:
        words: of the command line, flags aside.
        sweep: whether a key may list several values, as in seed=0,1,2; every combination is a run.

    Raises:
        UserError: for a word, name or value that means nothing.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from diffpolicy_rl.training.config import resolve

    _refuse_contradictions(words)
    try:
        parsed = OverridesParser.create().parse_overrides([part for word in words for part in translate(word)])
        choices = [_choices(override, sweep) for override in parsed]
        with initialize_config_module(_CONFIGS, version_base="1.3"):
            every = itertools.product(*choices)
            composed = [compose("train", list(overrides), return_hydra_config=True) for overrides in every]
        policies = [str(config.hydra.runtime.choices.policy) for config in composed]
        for config in composed:
            OmegaConf.set_struct(config, False)
            del config["hydra"]
        for key in sorted(OmegaConf.missing_keys(composed[0])):
            raise UserError(f"{key} has no value; choose one with {key.partition('.')[0]}=")
        trees: list[Any] = [OmegaConf.to_container(config, resolve=True) for config in composed]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"cannot read the command line: {str(error).splitlines()[0]}") from None
    runs = [resolve(_without_replaced(tree, words, policy)) for tree, policy in zip(trees, policies, strict=True)]
    _refuse_unused_data(words, runs[0])
    return runs


def _without_replaced(tree: dict[str, Any], words: Sequence[str], policy: str) -> dict[str, Any]:
    """The settings without what a policy's file tells its own net, where net= puts one there that does not know it."""
    import yaml

    from diffpolicy_rl.training.config import settings, target

    keys = {word.partition("=")[0].lstrip("+") for word in words}
    net = tree["policy"].get("net")
    if "net" not in keys or not isinstance(net, dict):
        return tree
    own = yaml.safe_load(_files("policy")[policy]).get("net", {}).keys() - settings(target(net["_target_"])).keys()
    lost = {name for name in own if f"policy.net.{name}" not in keys} - {"_target_"}
    kept = {name: value for name, value in net.items() if name not in lost}
    return tree | {"policy": tree["policy"] | {"net": kept}}


def _refuse_contradictions(words: Sequence[str]) -> None:
    keys = [word.partition("=")[0].lstrip("+") for word in words]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key} is given twice")
        if "base" in keys and key.partition(".")[0] in ("policy", "net", "bc"):
            raise UserError(f"{key} has no effect beside base=, whose run brings its policy, already cloned")


def _refuse_unused_data(words: Sequence[str], run: "TrainConfig") -> None:
    for key in (word.partition("=")[0].lstrip("+") for word in words):
        if run.base and key.partition(".")[0] == "data" and run.agent.get("mixing", "none") == "none":
            raise UserError(f"{key} has no effect beside base=, whose run brings its policy, already cloned")


def _choices(override: Any, sweep: bool) -> list[str]:
    """A parsed override as text, once for each value it lists."""
    text = str(override.input_line)
    if not override.is_sweep_override():
        return [text]
    if not sweep:
        raise UserError(f"{text.lstrip('+')} lists several values; add --multirun to run all")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def translate(word: str) -> list[str]:
    """A word as Hydra overrides: groups by name, own code and files by place, keys as they are."""
    key, equals, value = word.partition("=")
    if not equals:
        raise UserError(f"{word!r} is not of the form key=value")
    if key.lstrip("+").startswith("net."):  # the option is chosen beside the policy, its settings belong to it
        raise UserError(f"there is no setting {key.lstrip('+')}; did you mean 'policy.{key.lstrip('+')}'?")
    if key not in GROUPS:
        return [f"++{word.lstrip('+')}"]
    known = _files(key)
    if value in known or "," in value:
        return [word]
    if key == "agent" and re.fullmatch(r"\w[\w.]*:\w+", value):
        return ["agent=custom", f"++agent._target_={_quoted(value)}"]
    if key == "env" and (":" in value or re.search(r"-v\d+$", value)):
        # A file that also sets options is another task than the plain id.
        ours = [name for name, text in known.items() if text.partition("\n")[2] == f"id: {value}\n"]
        return [f"env={ours[0]}"] if ours else ["env=gymnasium", f"++env.id={_quoted(value)}"]
    if key == "data" and (Path(value).suffix or Path(value).exists()):
        return ["data=file", f"++data.path={_quoted(value)}"]
    raise UserError(f"there is no {key} {value!r}; {did_you_mean(value, known)}")


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
