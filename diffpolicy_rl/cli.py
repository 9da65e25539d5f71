"""What the entry points share: typed settings from ``key=value`` words, help texts, and one-sentence errors."""

import dataclasses
import errno
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from diffpolicy_rl.errors import UserError, did_you_mean

T = TypeVar("T")

_FILE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG)


def field_docs(config: type) -> dict[str, str]:
    """The one-line description of each field, read from the ``Attributes:`` section of the dataclass's docstring."""
    return dict(re.findall(r"^ {4,}(\w+): (.+)$", (config.__doc__ or "").partition("Attributes:")[2], re.MULTILINE))


def build(config: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Make a settings dataclass from text or YAML values, checking names and types.

    Args:
        config: the dataclass; nested dataclasses are built likewise.
        values: a value, or its text, by field name.
        where: prefix that names the place in messages, as in ``agent.``.

    Raises:
        UserError: for an unknown key, a missing one, or a value of another type.
    """
    hints = typing.get_type_hints(config)
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UserError(f"there is no setting {where}{key}; {did_you_mean(str(key), fields)}")
    for name, field in fields.items():
        if field.default is field.default_factory is dataclasses.MISSING and name not in values:
            raise UserError(f"{where}{name} must be given: {field_docs(config).get(name, name)}")
    return config(**{key: convert(_over(fields[key], value), hints[key], where + key) for key, value in values.items()})


def _over(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """What is given of a group without a class of its own, over its defaults."""
    default = None if field.default_factory is dataclasses.MISSING else field.default_factory()
    return {**default, **value} if isinstance(default, dict) and isinstance(value, Mapping) else value


def convert(value: Any, kind: Any, name: str) -> Any:
    """Turn a value or its text into the annotated type; raises UserError naming the setting when it does not fit."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else build(kind, _group(value or {}, name), f"{name}.")
    options = get_args(kind)
    if get_origin(kind) in (typing.Union, types.UnionType):
        if value is None or value in ("null", "none", "None"):
            return None
        return convert(value, next(option for option in options if option is not type(None)), name)
    if get_origin(kind) is Literal:
        if value not in options:
            raise UserError(f"{name}={value} is not a choice; {did_you_mean(str(value), map(str, options))}")
        return value
    if get_origin(kind) is tuple:
        items = value.strip("[]()").split(",") if isinstance(value, str) else value
        items = items if isinstance(items, list | tuple) else [items]
        return tuple(convert(item, options[0], name) for item in items if item != "")
    if get_origin(kind) is dict:
        return dict(_group(value, name))
    try:
        return _scalar(value, kind)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{name}={value} is not {_nouns[kind]}") from None


_nouns = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


def _group(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{name}={value} is not a group of settings; set its members, as in {name}.key=value")
    return value


def _scalar(value: Any, kind: Any) -> Any:
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
    if kind in (int, float) and isinstance(value, bool):
        raise ValueError
    if kind is int and not re.fullmatch(r"[+-]?\d[\d_]*", str(value)):  # as in 1e6
        number = float(value)
        if not number.is_integer():
            raise ValueError
        return int(number)
    return kind(value)


def parse(config: type[T], argv: Sequence[str], usage: str, positional: str | None = None) -> T:
    """Settings from a command line of an optional positional path and ``key=value`` words; ``--help`` prints and exits.

    Args:
        config: dataclass of the settings; its docstring describes command and fields.
        argv: the words after the command.
        usage: the command line's shape, for the help text.
        positional: the field a word without ``=`` goes to.
    """
    if {"-h", "--help"} & set(argv):
        print(help_text(config, usage))
        sys.exit(0)
    values: dict[str, Any] = {}
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals and (positional is None or positional in values):
            raise UserError(f"{word!r} is not of the form key=value; usage: {usage}")
        if equals and key in values:
            raise UserError(f"{key} is given twice")
        values[key if equals else str(positional)] = value if equals else word
    return build(config, values)


def help_text(config: type, usage: str) -> str:
    """Usage, what the command does, and every setting with its default and meaning."""
    docs, rows = field_docs(config), []
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        default = "" if field.default is dataclasses.MISSING else f"={field.default}"
        rows.append(f"  {field.name + default:32} {docs.get(field.name, '')}")
    about = (config.__doc__ or "").partition("Attributes:")[0].strip()
    return f"usage: {usage}\n\n{about}\n\n" + "\n".join(rows)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Call an entry point with the command line.

    A UserError, or a file system that refuses, becomes one sentence on stderr and exit status 2. SIGTERM ends the
    process as Ctrl-C does, so that half-written files are taken away; training and serving handle both themselves.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # as of ``| head``: nobody reads on, and nothing is to be said at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _FILE_SYSTEM:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
