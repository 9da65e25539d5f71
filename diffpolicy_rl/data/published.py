"""Data sets that others have published, by name: where their files are, and where they go.

D4RL (Fu et al. 2020, arXiv 2004.07219), DSRL (Liu et al. 2023, arXiv 2306.09303) and what Farama keeps of Minari's
(Younis et al. 2024). Data of the first two is CC-BY 4.0. None of them publishes digests.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from diffpolicy_rl.data.download import cache, fetch_recorded
from diffpolicy_rl.errors import UserError, did_you_mean

_D4RL = ("http://rail.eecs.berkeley.edu/datasets/offline_rl", "https://huggingface.co/datasets/imone/D4RL/resolve/main")
_DSRL = ("https://huggingface.co/datasets/YYY-45/DSRL/resolve/main", "http://data.offline-saferl.org/download")
_MINARI = "https://huggingface.co/datasets/farama-minari"

_GYM = ("halfcheetah", "hopper", "walker2d", "ant")
_ADROIT = ("pen", "hammer", "door", "relocate")
_ADROIT_V0 = {"human": "{}-v0_demos_clipped", "cloned": "{}-demos-v0-bc-combined", "expert": "{}-v0_expert_clipped"}
_ANTMAZE = {
    "umaze": "u-maze_noisy_multistart_False_multigoal_False",
    "umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
    "medium-play": "big-maze_noisy_multistart_True_multigoal_False",
    "medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
    "large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
    "large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True",
}
_KITCHEN = {
    "complete": "mini_kitchen_microwave_kettle_light_slider",
    "partial": "kitchen_microwave_kettle_light_slider",
    "mixed": "kitchen_microwave_kettle_bottomburner_light",
}
# Task, version, highest cost, number of trajectories: DSRL names its files so.
_SAFE = """
AntCircle-v0-200-5728 AntRun-v0-150-1816 BallCircle-v0-80-886 BallRun-v0-80-940 CarCircle-v0-100-1450
CarRun-v0-40-651 DroneCircle-v0-100-1923 DroneRun-v0-140-1990 CarButton1Gymnasium-v0-250-2656
CarButton2Gymnasium-v0-300-3755 CarCircle1Gymnasium-v0-250-1271 CarCircle2Gymnasium-v0-400-940
CarGoal1Gymnasium-v0-120-1671 CarGoal2Gymnasium-v0-200-4105 CarPush1Gymnasium-v0-200-2871
CarPush2Gymnasium-v0-250-4407 PointButton1Gymnasium-v0-200-2268 PointButton2Gymnasium-v0-250-3288
PointCircle1Gymnasium-v0-200-1098 PointCircle2Gymnasium-v0-300-895 PointGoal1Gymnasium-v0-100-2022
PointGoal2Gymnasium-v0-200-3442 PointPush1Gymnasium-v0-150-2379 PointPush2Gymnasium-v0-200-3242
AntVelocityGymnasium-v1-250-2249 HalfCheetahVelocityGymnasium-v1-250-2495 HopperVelocityGymnasium-v1-250-2240
SwimmerVelocityGymnasium-v1-200-1686 Walker2dVelocityGymnasium-v1-300-2729
"""
_METADRIVE = {"easy": 85, "medium": 50, "hard": 85}


def _d4rl() -> Iterator[tuple[str, str]]:
    """Names, and places below D4RL's address."""
    levels = ("random", "medium", "expert", "medium-replay", "medium-expert")
    for task, level in product(_GYM, levels):
        old = "walker" if (task, level) == ("walker2d", "medium-replay") else task
        yield f"{task}-{level}-v0", f"gym_mujoco/{old}_{level.replace('medium-replay', 'mixed').replace('-', '_')}"
    for task, level, version in product(_GYM, (*levels, "full-replay"), ("v1", "v2")):
        yield f"{task}-{level}-{version}", f"gym_mujoco_{version}/{task}_{level.replace('-', '_')}-{version}"
    for task, (level, place) in product(_ADROIT, _ADROIT_V0.items()):
        yield f"{task}-{level}-v0", f"hand_dapg/{place.format(task)}"
        yield f"{task}-{level}-v1", f"hand_dapg_v1/{task}-{level}-v1"
    for maze, place in _ANTMAZE.items():
        yield f"antmaze-{maze}-v0", f"ant_maze_new/Ant_maze_{place}_sparse"
        yield f"antmaze-{maze}-v2", f"ant_maze_v2/Ant_maze_{place}_sparse_fixed"
    for tasks, place in _KITCHEN.items():
        yield f"kitchen-{tasks}-v0", f"kitchen/{place}-v0"
    for maze in ("umaze", "medium", "large"):
        yield f"maze2d-{maze}-v1", f"maze2d/maze2d-{maze}-sparse-v1"
        yield f"maze2d-{maze}-dense-v1", f"maze2d/maze2d-{maze}-dense-v1"
    yield from (("maze2d-open-v0", "maze2d/maze2d-open-sparse"), ("maze2d-open-dense-v0", "maze2d/maze2d-open-dense"))


def _sets() -> dict[str, tuple[str, ...]]:
    first, mirror = _D4RL
    found = {name: (f"{first}/{place}.hdf5", f"{mirror}/{place.rpartition('/')[2]}.hdf5") for name, place in _d4rl()}
    files = {f"dsrl/{task.partition('-')[0].removesuffix('Gymnasium')}": f"Safety{task}.hdf5" for task in _SAFE.split()}
    for (traffic, cost), density in product(_METADRIVE.items(), ("sparse", "mean", "dense")):
        files[f"dsrl/{traffic}{density}"] = f"SafeMetaDrive-{traffic}{density}-v0-{cost}-1000.hdf5"
    return found | {name: tuple(f"{place}/{file}" for place in _DSRL) for name, file in files.items()}


PUBLISHED = _sets()
"""Addresses of the files of D4RL and DSRL, in the order to try them, by name; Minari's are ``minari/<id>``."""


def place_of(name: str) -> Path | None:
    """Where a published set lies after its download, or None if there is none of that name."""
    folder = cache() / "data"
    if name in PUBLISHED:
        return folder / f"{name}.hdf5"
    minari_id = name.removeprefix("minari/")
    parts = minari_id.split("/")
    if name.startswith("minari/") and len(parts) > 1 and all(part not in ("", ".", "..") for part in parts):
        return folder / "minari" / minari_id
    return None


def download(name: str) -> Path:
    """Download a published set once.

    Args:
        name: as in hopper-medium-v2, dsrl/CarCircle, or minari/D4RL/door/human-v2.

    Raises:
        UserError: if there is none of that name, it cannot be downloaded, or is not what was downloaded before.
    """
    target = place_of(name)
    if target is None:
        raise UserError(f"nobody is known to publish {name!r}; {did_you_mean(name, PUBLISHED)}")
    if name in PUBLISHED:
        return fetch_recorded(PUBLISHED[name], target)
    group, _, rest = name.removeprefix("minari/").partition("/")
    for file in ("metadata.json", "main_data.hdf5"):
        fetch_recorded((f"{_MINARI}/{group}/resolve/main/{rest}/data/{file}",), target / "data" / file)
    return target
