"""Errors that a user can cause: one sentence, no traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input: the message says in one sentence what is wrong, where, and what to do."""


def require_positive(**settings: float) -> None:
    """Raise UserError, naming the first setting that is not above 0."""
    for name, value in settings.items():
        if value <= 0:
            raise UserError(f"{name}={value} must be above 0")


def require_not_negative(**settings: float) -> None:
    """Raise UserError, naming the first setting that is below 0."""
    for name, value in settings.items():
        if value < 0:
            raise UserError(f"{name}={value} must not be negative")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause that names the closest known word, or lists what is known when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"
