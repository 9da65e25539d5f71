"""The README's table of speeds."""

from benchmarks.speeds import table


def test_rows_are_times_and_ratios_of_one_run():
    updates = {
        **{"dql_ms": 20.0, "ofql_ms": 12.5, "dql_compiled_ms": 16.0, "ofql_compiled_ms": 10.0},
        **{"public_code/dql": 1.75, "public_code/dql_compiled": 2.0, "textbook/dql": 1.25},
        **{"textbook/dql_compiled": 1.5, "dql/ofql": 1.6, "dql_compiled/ofql_compiled": 1.6},
        **{"dql/gemm_floor": 2.5, "ofql/gemm_floor": 4.0},
    }
    decisions = {"ofql_ms": 15.0, "dql/ofql": 2.5}
    lines = table({"updates": updates, "decisions": decisions, "decisions_without_candidates": decisions}).splitlines()
    assert lines[2] == "| DQL's gradient step | the public code's, with its nets | 20.0 | 35.0 | 1.75 |"
    assert lines[5] == "| DQL's gradient step, compiled | a textbook's, with our nets | 16.0 | 24.0 | 1.50 |"
    assert lines[7] == "| OFQL's gradient step, compiled | our DQL's, compiled | 10.0 | 16.0 | 1.60 |"
    assert lines[9] == "| OFQL's gradient step | its matrix products alone | 12.5 | 3.1 | 0.25 |"
    assert lines[10] == "| OFQL's decisions, of 16 candidates each | our DQL's | 15.0 | 37.5 | 2.50 |"
    assert len(lines) == 12
