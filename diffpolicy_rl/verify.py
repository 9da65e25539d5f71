"""Check a bundle before it moves a robot: ``python -m diffpolicy_rl.verify bundle/``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffpolicy_rl import cli
from diffpolicy_rl.errors import UserError


@dataclass(frozen=True)
class VerifyConfig:
    """Compute again what a bundle claims: hashes, schema, parity with torch, limits, latency; status 1 if any fails.

    Attributes:
        bundle: a folder or a zip.
    """

    bundle: str


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    config = cli.parse(VerifyConfig, argv, "python -m diffpolicy_rl.verify BUNDLE", "bundle")
    try:
        from diffpolicy_rl.bundles.checks import verify
    except ImportError as error:
        missing = error.name or "extra packages"
        raise UserError(f"verify needs {missing}: pip install 'diffpolicy_rl[export]'") from error
    failed: list[str] = []
    for check in verify(Path(config.bundle)):
        print(f"{'pass' if check.passed else 'FAIL'}  {check.name:8}  {check.detail}", flush=True)
        failed += [] if check.passed else [check.name]
    if failed:
        print(f"{config.bundle} fails: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)
    print(f"{config.bundle} passes")


if __name__ == "__main__":
    cli.run(main)
