"""What figures are measured on; without torch, which no robot has."""

import os
import platform
from pathlib import Path
from typing import Any


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What figures were measured on."""
    system = f"{platform.system()} {platform.machine()}"
    return {"system": system, "processor": _processor(), "cores": available_cores()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
