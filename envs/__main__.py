"""``python -m diffpolicy_rl.envs``: the tasks defined here."""

import sys

from rich.console import Console
from rich.table import Table

from diffpolicy_rl.envs.tasks import TASKS


def main() -> None:
    """Print a table of our tasks."""
    if sys.argv[1:]:
        print("usage: python -m diffpolicy_rl.envs\n\nList the tasks that are defined here.")
        sys.exit(0 if {"-h", "--help"} & set(sys.argv) else 2)
    table = Table(title="Tasks (any other Gymnasium id runs on the gymnasium and workers backends)")
    for column in ("id", "obs dim", "action dim", "time limit", "backend", "needs"):
        table.add_column(column, overflow="fold")
    for env_id, task_type in TASKS.items():
        task = task_type()
        numbers = (task.obs_dim, task.model.nu, task.max_episode_steps)
        table.add_row(env_id, *map(str, numbers), "batch", "\n".join(task.missing({})))
    Console().print(table)


if __name__ == "__main__":
    main()
