"""Is a student as good as its teacher? Paired episodes, a verdict of non-inferiority, and how its samples spread."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffpolicy_rl.streams import stream
from diffpolicy_rl.training.driver import Driver
from diffpolicy_rl.training.evaluation import evaluate_policy, moments
from diffpolicy_rl.training.threads import torch_threads
from diffpolicy_rl.types import DeployedPolicy, Obs, VecEnv

SUCCESS_MARGIN, RETURN_MARGIN = 0.05, 0.05
"""How much worse a student may be: 5 points of success, or 5 % of the teacher's return."""

COST_MARGIN = 1.0
"""How much more an episode of the student may cost: a tenth of the limit of the tasks with costs."""

FEWEST = 100
"""Paired episodes below which nothing is said to be as good."""

SPREAD_LIMIT = 1.5
"""Energy distance to the teacher over that between two sets of the teacher's own samples."""

_STATES, _SAMPLES = 5, 6  # stream keys


def compare(
    teacher: DeployedPolicy,
    student: DeployedPolicy,
    env: VecEnv,
    episodes: int,
    seed: int,
    progress: Callable[[int], None] = lambda finished: None,
) -> dict[str, Any]:
    """Play the same episodes with both, from the same initial states and, where both take the same, with equal noise.

    Args:
        teacher: what to compare with.
        student: what may be worse by a margin only.
        env: a vector env of its own.
        episodes: of each, at least.
        seed: of resets and noise.
        progress: called with the number of finished episodes of both.

    Returns:
        Their evaluations, and ``verdict``, see ``non_inferiority``.
    """
    first = evaluate_policy(teacher, env, episodes, seed, progress)
    played = first["episodes"]
    second = evaluate_policy(student, env, episodes, seed, lambda finished: progress(played + finished))
    return {"teacher": first, "student": second, "verdict": non_inferiority(first, second)}


def non_inferiority(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    """The mean paired difference, its 95 % interval, and whether that lies above minus the margin.

    Where episodes have costs, the student's may not be higher by more than ``COST_MARGIN`` either. Fewer than
    ``FEWEST`` episodes pass nothing: few of them are often all alike, and their interval has no width.

    Args:
        teacher: an evaluation.
        student: one of the same episodes.

    Returns:
        measure (success where there is one, else return), difference, ci_low, ci_high, margin, episodes, passed; with
        costs also cost_difference and cost_ci_high.
    """
    measure = "success" if "wins" in teacher else "return"
    pairs = zip(*(result["wins" if measure == "success" else "returns"] for result in (student, teacher)), strict=True)
    mean, _, half = moments([float(ours) - float(theirs) for ours, theirs in pairs])
    margin = SUCCESS_MARGIN if measure == "success" else RETURN_MARGIN * abs(teacher["mean"])
    passed = mean - half > -margin and len(teacher["returns"]) >= FEWEST
    cost: dict[str, float] = {}
    if "costs" in teacher:
        pairs = zip(student["costs"], teacher["costs"], strict=True)
        more, _, uncertain = moments([ours - theirs for ours, theirs in pairs])
        cost = {"cost_difference": more, "cost_ci_high": more + uncertain}
        passed = passed and more + uncertain < COST_MARGIN
    return cost | {
        "measure": measure,
        "difference": mean,
        "ci_low": mean - half,
        "ci_high": mean + half,
        "margin": margin,
        "episodes": len(teacher["returns"]),
        "passed": passed,
    }


def verdict_line(verdict: dict[str, Any]) -> str:
    """One sentence about non-inferiority."""
    result = "not inferior" if verdict["passed"] else "NOT SHOWN to be as good"
    digits = 3 if verdict["measure"] == "success" else 1
    low, mean, high, margin = (f"{verdict[name]:.{digits}f}" for name in ("ci_low", "difference", "ci_high", "margin"))
    return f"student less teacher, {verdict['measure']}: {mean}, 95 % CI [{low}, {high}], margin {margin}: {result}"


def visited(policy: DeployedPolicy, env: VecEnv, decisions: int, seed: int) -> Tensor:
    """Observations (N decisions, O) that a policy meets in its first decisions."""
    driver, (obs, _) = Driver(policy, env, seed), env.reset(seed=seed)
    seen: list[Obs] = []
    with torch_threads(1), torch.inference_mode():
        for _ in range(decisions):
            seen.append(obs)
            obs, _, terminated, truncated, _ = env.step(driver.act(obs))
            driver.reset((terminated | truncated).cpu())
    return torch.cat([part for part in seen if isinstance(part, Tensor)])


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| between samples (..., n, F) and (..., m, F) (Szekely & Rizzo 2013).

    It is 0 only where they are the same; two sets of one distribution are 2 E|X - X'| / n apart on average.
    """
    across, first, second = (torch.cdist(a, b).mean((-2, -1)) for a, b in ((x, y), (x, x), (y, y)))
    return 2 * across - first - second


@torch.inference_mode()
def spread(
    teacher: DeployedPolicy, student: DeployedPolicy, obs: Tensor, samples: int = 64, states: int = 200, seed: int = 0
) -> dict[str, Any] | None:
    """How far a student's samples are from the teacher's, beside how far two sets of the teacher's own are.

    Args:
        teacher: what to compare with.
        student: the other.
        obs: where (S, O).
        samples: of each, at each observation.
        states: how many observations to take at random.
        seed: of what is drawn.

    Returns:
        Mean energy distances ``to_teacher`` and ``teacher_to_itself``, in units of the mean distance between two of the
        teacher's samples; their ``ratio``, and whether that is below ``SPREAD_LIMIT``, ``passed``; ``by_state`` both.
        None where the teacher is certain of what it does.
    """
    if teacher.noise_shape is None:
        return None
    chosen = obs[torch.randperm(len(obs), generator=stream(_STATES, seed))[:states]]
    generator = stream(_SAMPLES, seed)

    def drawn(policy: DeployedPolicy) -> Tensor:
        rows = chosen.repeat_interleave(samples, 0)
        chunks = [policy(part, policy.sample_noise(len(part), generator)) for part in rows.split(2048)]
        return torch.cat(chunks)[:, : policy.execute].unflatten(0, (len(chosen), samples)).flatten(2).double()

    first, second, other = drawn(teacher), drawn(teacher), drawn(student)
    scale = torch.cdist(first, second).mean()
    if scale == 0:  # a Gaussian policy is given noise that it does not use
        return None
    distances = {"to_teacher": energy_distance(first, other), "teacher_to_itself": energy_distance(first, second)}
    means = {name: (values.mean() / scale).item() for name, values in distances.items()}
    ratio = means["to_teacher"] / means["teacher_to_itself"]
    by_state = {name: (values / scale).tolist() for name, values in distances.items()}
    return means | {"ratio": ratio, "passed": ratio <= SPREAD_LIMIT, "by_state": by_state}
