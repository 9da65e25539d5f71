import hashlib

import pytest
from loopback import CONTENT

from diffpolicy_rl.data import published
from diffpolicy_rl.data.catalog import resolve
from diffpolicy_rl.data.published import PUBLISHED, download, place_of
from diffpolicy_rl.errors import UserError


def test_names_and_addresses():
    first, mirror = PUBLISHED["hopper-medium-replay-v2"]
    assert first.endswith("berkeley.edu/datasets/offline_rl/gym_mujoco_v2/hopper_medium_replay-v2.hdf5")
    assert mirror == "https://huggingface.co/datasets/imone/D4RL/resolve/main/hopper_medium_replay-v2.hdf5"
    assert PUBLISHED["walker2d-medium-replay-v0"][0].endswith("/gym_mujoco/walker_mixed.hdf5")
    assert PUBLISHED["antmaze-large-play-v2"][0].endswith(
        "/ant_maze_v2/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5"
    )
    assert PUBLISHED["pen-cloned-v0"][0].endswith("/hand_dapg/pen-demos-v0-bc-combined.hdf5")
    assert PUBLISHED["kitchen-mixed-v0"][0].endswith("/kitchen_microwave_kettle_bottomburner_light-v0.hdf5")
    assert PUBLISHED["dsrl/PointGoal1"][0].endswith("/DSRL/resolve/main/SafetyPointGoal1Gymnasium-v0-100-2022.hdf5")
    assert PUBLISHED["dsrl/mediumdense"][1].endswith("/download/SafeMetaDrive-mediumdense-v0-50-1000.hdf5")
    assert len([name for name in PUBLISHED if name.startswith("dsrl/")]) == 38


@pytest.fixture
def toy(server, monkeypatch):
    """The name of a set that only the second place has."""
    monkeypatch.setitem(PUBLISHED, "toy-v0", (f"{server.url}/missing/a.hdf5", f"{server.url}/mirror/a.hdf5"))
    return "toy-v0"


def test_the_first_download_is_what_holds(toy, server, cache):
    with pytest.raises(UserError, match=r"toy-v0 is published, but not here yet: python -m .* download toy-v0"):
        resolve(toy)
    path = download(toy)
    assert path == cache / "data" / "toy-v0.hdf5" == resolve(toy)
    assert path.read_bytes() == CONTENT
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert path.with_name("toy-v0.hdf5.sha256").read_text() == f"{digest}  toy-v0.hdf5\n"  # as sha256sum -c wants it
    assert server.requests == ["/missing/a.hdf5", "/mirror/a.hdf5"]
    assert download(toy) == path
    assert len(server.requests) == 2
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"toy-v0\.hdf5 has changed since it was downloaded"):
        download(toy)
    path.unlink()
    path.with_name("toy-v0.hdf5.sha256").write_text(f"{'0' * 64}  toy-v0.hdf5\n")
    with pytest.raises(UserError, match=f"SHA-256 is {digest}, not {'0' * 64}"):
        download(toy)
    assert not path.exists()


def test_offline_is_said_in_a_sentence(monkeypatch, cache):
    places = ("http://127.0.0.1:1/a.hdf5", "http://127.0.0.1:1/b.hdf5")
    monkeypatch.setitem(PUBLISHED, "toy-v0", places)
    with pytest.raises(
        UserError, match=r"^cannot download .*/a\.hdf5 .*nor .*/b\.hdf5 .*put it at .*toy-v0\.hdf5$"
    ) as caught:
        download("toy-v0")
    assert "\n" not in str(caught.value)
    assert list((cache / "data").iterdir()) == []


def test_minari_by_id(server, cache, monkeypatch):
    monkeypatch.setattr(published, "_MINARI", server.url)
    folder = download("minari/D4RL/door/human-v2")
    assert folder == cache / "data" / "minari" / "D4RL" / "door" / "human-v2" == place_of("minari/D4RL/door/human-v2")
    assert (folder / "data" / "main_data.hdf5").read_bytes() == CONTENT
    prefix = "/D4RL/resolve/main/door/human-v2/data"
    assert server.requests == [f"{prefix}/metadata.json", f"{prefix}/main_data.hdf5"]


@pytest.mark.parametrize("name", ["hopper-medum-v2", "minari/x", "minari/a/../../b", "minari//etc/passwd", "../x"])
def test_unknown_names(name):
    with pytest.raises(UserError, match="nobody is known to publish"):
        download(name)


def test_misspelt_names_are_suggested():
    with pytest.raises(UserError, match=r"did you mean 'hopper-medium-v2'\?"):
        resolve("hopper-medum-v2")
