"""Look into a data file: ``python -m diffpolicy_rl.data info FILE``."""

from collections.abc import Sequence

from diffpolicy_rl import cli
from diffpolicy_rl.data.catalog import resolve
from diffpolicy_rl.data.d4rl import read
from diffpolicy_rl.data.scores import describe
from diffpolicy_rl.errors import UserError

_USAGE = "python -m diffpolicy_rl.data info FILE"


def main(argv: Sequence[str]) -> None:
    """Print shapes, origin and returns."""
    if {"-h", "--help"} & set(argv):
        print(f"usage: {_USAGE}\n\nPrint what a data file, or a packaged set by name, holds.")
        return
    if len(argv) != 2 or argv[0] != "info":
        raise UserError(f"usage: {_USAGE}")
    data = read(resolve(argv[1]))
    returns = data.returns()
    print(f"{data.source}: {len(returns)} episodes, {len(data.rewards):,} transitions")
    print(f"observations {data.observations.shape}, actions {data.actions.shape}")
    print("\n".join(describe(str(data.attributes.get("env_id", "")), returns, data.episode_costs())))
    for name, value in sorted(data.attributes.items()):
        print(f"{name}: {value}")


if __name__ == "__main__":
    cli.run(main)
