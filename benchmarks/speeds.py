"""The README's table of how fast offline agents learn and decide, from what ``throughput offline`` measured."""

from collections.abc import Mapping

from benchmarks.measure import Figures

NAME = "throughput_offline"
_PUBLIC, _TEXTBOOK = "the public code's, with its nets", "a textbook's, with our nets"
# What is timed, against what, and the figures of both.
_UPDATES = (
    ("DQL's gradient step", _PUBLIC, "public_code", "dql"),
    ("DQL's gradient step, compiled", _PUBLIC, "public_code", "dql_compiled"),
    ("DQL's gradient step", _TEXTBOOK, "textbook", "dql"),
    ("DQL's gradient step, compiled", _TEXTBOOK, "textbook", "dql_compiled"),
    ("OFQL's gradient step", "our DQL's", "dql", "ofql"),
    ("OFQL's gradient step, compiled", "our DQL's, compiled", "dql_compiled", "ofql_compiled"),
)
_DECISIONS = (
    ("OFQL's decisions, of 16 candidates each", "decisions"),
    ("OFQL's decisions, one sample each", "decisions_without_candidates"),
)


def table(figures: Mapping[str, Figures]) -> str:
    """Markdown: one row per ratio, with milliseconds of one gradient step or of decisions for 256 observations."""
    lines = ["| what | against | ms | the other's ms | times as fast |", "|---|---|---:|---:|---:|"]

    def add(what: str, against: str, ours: float, ratio: float) -> None:
        lines.append(f"| {what} | {against} | {ours:.1f} | {ours * ratio:.1f} | {ratio:.2f} |")

    updates = figures["updates"]
    for what, against, other, ours in _UPDATES:
        add(what, against, updates[f"{ours}_ms"], updates[f"{other}/{ours}"])
    for name in ("dql", "ofql"):
        add(
            f"{name.upper()}'s gradient step",
            "its matrix products alone",
            updates[f"{name}_ms"],
            1 / updates[f"{name}/gemm_floor"],
        )
    for what, key in _DECISIONS:
        add(what, "our DQL's", figures[key]["ofql_ms"], figures[key]["dql/ofql"])
    return "\n".join(lines)
