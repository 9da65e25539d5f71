import errno
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training.logger import Console, Logger, read_metrics


def record(iteration, **numbers):
    return {"iteration": iteration, "phase": "online", **numbers}


def test_records_go_to_jsonl_and_tensorboard(tmp_path):
    logger = Logger(tmp_path, (), {}, 0)
    for iteration in (1, 2):
        logger.write(record(iteration, loss=0.5 * iteration))
    logger.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [record(1, loss=0.5), record(2, loss=1.0)]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 0.5), (2, 1.0)]


def test_resuming_drops_what_came_after_the_checkpoint_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record(i)) + "\n" for i in (1, 2, 3)) + '{"iteration": 4, "ph')
    logger = Logger(tmp_path, (), {}, 2)
    logger.write(record(3, loss=7.0))
    logger.close()
    assert read_metrics(path) == [record(1), record(2), record(3, loss=7.0)]


def test_disk_that_fills_up_is_one_sentence(tmp_path):
    logger = Logger(tmp_path, (), {}, 0)

    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    logger._file = Full()
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        logger.write(record(1))


def test_plain_lines_when_not_on_a_terminal(capsys):
    with Console() as console:
        console.begin("online", 0, 3)
        for done in (1, 2, 3):
            console.advance(done, f"note {done}")
        console.line("base: return 5")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["online 3/3  ETA 0 s  note 3", "base: return 5"]
