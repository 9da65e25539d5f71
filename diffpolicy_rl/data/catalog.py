"""What can be had by name: demonstrations, packaged or downloaded, and external agents to collect more from."""

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from diffpolicy_rl.data.download import cache, fetch
from diffpolicy_rl.data.published import PUBLISHED, place_of
from diffpolicy_rl.errors import UserError, did_you_mean

_AGENTS = "https://raw.githubusercontent.com/DLR-RM/rl-trained-agents/cd35bde610f4045bf2e0731c8f4c88d22df8fc85"


@dataclass(frozen=True)
class Expert:
    """An external agent: a Stable-Baselines3 zip, trained on Gym's v3 task, whose observations are those of v5.

    Attributes:
        algorithm: sac or tqc.
        task: the task's name in the public repository.
        sha256: of the zip.
    """

    algorithm: str
    task: str
    sha256: str

    @property
    def url(self) -> str:
        """Where the zip is published (DLR-RM/rl-trained-agents, MIT)."""
        return f"{_AGENTS}/{self.algorithm}/{self.task}-v3_1/{self.task}-v3.zip"

    @property
    def env_id(self) -> str:
        """The task to run it in."""
        return f"{self.task}-v5"


_ALL = (
    Expert("sac", "HalfCheetah", "63ac27ae0c2ffe0428ded7bf93c6981c2f638352ae9d2770afc55c9ce2fdfba8"),
    Expert("sac", "Hopper", "0825339a734891abbf0d1917f38092729e68cca58b1102de7c520a65648ec1e0"),
    Expert("sac", "Walker2d", "dfaaaeb48b06b70cab6092f8968fcf0966f0e0ca0fd163099b2d6cbb351dbed4"),
    Expert("tqc", "HalfCheetah", "836e9f4d641c68c06e6dbe6c06f907eda943627ef1cece324bac4d007a757b9f"),
    Expert("tqc", "Hopper", "ad04cf1b354adb8810cd2a98f45f3c5179bd5c6d9fa83a1a7b8c1157094417e3"),
    Expert("tqc", "Walker2d", "329d4c4e0983a53e67c27cd3f69a2d3a8bb3e93aeb2de639ba68f9b6af5eb7e1"),
)
EXPERTS = {f"{expert.algorithm}-{expert.task.lower()}": expert for expert in _ALL}


def resolve(path: str) -> Path:
    """The file or folder a data setting names: a path, or a packaged set, or one that was downloaded, by name."""
    if Path(path).exists() or Path(path).suffix:
        return Path(path)
    demos = Path(str(resources.files("diffpolicy_rl.data") / "demos"))
    packaged = {file.stem: file for file in demos.glob("*.hdf5")}
    if path in packaged:
        return packaged[path]
    published = place_of(path)
    if published is None:
        raise UserError(f"there is no data set {path!r}; {did_you_mean(path, [*packaged, *PUBLISHED])}")
    if not published.exists():
        raise UserError(f"{path} is published, but not here yet: python -m diffpolicy_rl.data download {path}")
    return published


def fetch_expert(expert: str) -> Path:
    """The local file of an external agent.

    Args:
        expert: a path, a URL, or a name in ``EXPERTS``; the latter two are downloaded once, to the folder that
            DIFFPOLICY_RL_CACHE names, by default ~/.cache/diffpolicy_rl.

    Raises:
        UserError: if it is none of these, cannot be downloaded, or is not the file the catalogue describes.
    """
    if Path(expert).is_file():
        return Path(expert)
    if expert in EXPERTS:
        entry = EXPERTS[expert]
        return fetch((entry.url,), cache() / f"{expert}.zip", entry.sha256)
    if "://" in expert:
        place = hashlib.sha256(expert.encode()).hexdigest()[:12]  # two places may use the same file name
        return fetch((expert,), cache() / f"{place}-{expert.rsplit('/', 1)[-1]}", None)
    from diffpolicy_rl.scripted import SCRIPTED  # here, because it brings torch

    known = {*EXPERTS, *SCRIPTED}
    raise UserError(f"there is no expert {expert!r}, nor a file of that name; {did_you_mean(expert, known)}")
