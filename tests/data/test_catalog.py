import hashlib

import pytest
from loopback import CONTENT

from diffpolicy_rl.data import catalog
from diffpolicy_rl.data.catalog import EXPERTS, Expert, fetch_expert, resolve
from diffpolicy_rl.data.d4rl import read
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.scripted import SCRIPTED


@pytest.fixture
def toy(server, monkeypatch):
    """The name of an expert that the loopback server holds."""
    monkeypatch.setattr(catalog, "_AGENTS", server.url)
    monkeypatch.setitem(EXPERTS, "sac-toy", Expert("sac", "Toy", hashlib.sha256(CONTENT).hexdigest()))
    return "sac-toy"


def test_download_once(toy, server, cache):
    path = fetch_expert(toy)
    assert path == cache / "sac-toy.zip"
    assert path.read_bytes() == CONTENT
    assert fetch_expert(toy) == path
    assert server.requests == ["/sac/Toy-v3_1/Toy-v3.zip"]
    assert list(cache.iterdir()) == [path]


def test_spoilt_cache_is_replaced(toy, server, cache):
    fetch_expert(toy).write_bytes(b"spoilt")
    assert fetch_expert(toy).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_other_content_is_refused(server, cache, monkeypatch):
    monkeypatch.setattr(catalog, "_AGENTS", server.url)
    monkeypatch.setitem(EXPERTS, "sac-toy", Expert("sac", "Toy", "0" * 64))
    with pytest.raises(UserError, match=f"SHA-256 is {hashlib.sha256(CONTENT).hexdigest()}, not {'0' * 64}"):
        fetch_expert("sac-toy")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("trouble", ["missing", "broken", "silent", "cut"])
def test_failed_download_says_where_to_put_the_file(server, cache, trouble):
    with pytest.raises(UserError, match=f"cannot download {server.url}/{trouble}/a.zip .* put it at {cache}") as caught:
        fetch_expert(f"{server.url}/{trouble}/a.zip")
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.zip", "nonsense://there/a.zip", "://a.zip", "http://[/a.zip"])
def test_unreachable(cache, url):
    with pytest.raises(UserError, match="cannot download"):
        fetch_expert(url)


def test_cache_that_cannot_be_made(toy, cache):
    cache.write_text("a file")
    with pytest.raises(UserError, match="cannot download"):
        fetch_expert(toy)


def test_urls_that_end_alike_are_two_files(server, cache):
    first, second = fetch_expert(f"{server.url}/one/best.zip"), fetch_expert(f"{server.url}/two/best.zip")
    assert first != second
    assert server.requests == ["/one/best.zip", "/two/best.zip"]
    assert fetch_expert(f"{server.url}/one/best.zip") == first
    assert len(server.requests) == 2


def test_local_and_unknown_experts(tmp_path, cache):
    (tmp_path / "mine.zip").touch()
    assert fetch_expert(str(tmp_path / "mine.zip")) == tmp_path / "mine.zip"
    with pytest.raises(UserError, match="did you mean 'sac-hopper'"):
        fetch_expert("sac-hoper")


def test_every_published_expert_is_pinned():
    for name, expert in EXPERTS.items():
        assert name == f"{expert.algorithm}-{expert.task.lower()}"
        assert len(bytes.fromhex(expert.sha256)) == 32
        assert expert.url.startswith("https://")
        assert expert.env_id == f"{expert.task}-v5"


def test_resolve(tmp_path, monkeypatch):
    assert resolve("hopper").name == "hopper.hdf5"
    assert resolve("hopper").is_file()
    assert resolve("some/file.hdf5").as_posix() == "some/file.hdf5"  # whether it exists is for the reader to say
    with pytest.raises(UserError, match=r"there is no data set 'hoper'; did you mean 'hopper'\?"):
        resolve("hoper")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hopper").touch()
    assert resolve("hopper").samefile(tmp_path / "hopper")  # the user's own file goes first


@pytest.mark.parametrize(
    ("name", "megabytes", "episodes", "worst"),
    [("hopper", 1, 40, 1000), ("halfcheetah", 2, 20, 8000), ("peg_insertion", 0.5, 100, 0.99)],
)
def test_packaged_demonstrations(name, megabytes, episodes, worst):
    path = resolve(name)
    assert path.stat().st_size <= megabytes * 1e6
    data = read(path)
    assert len(data.returns()) == episodes == data.attributes["episodes"]
    assert data.returns().min() > worst
    experts = EXPERTS | SCRIPTED
    assert data.attributes["return_mean"] == pytest.approx(data.returns().mean())
    assert data.attributes["source"] in experts
    assert data.attributes["env_id"] == experts[data.attributes["source"]].env_id
    assert {"seed", "command", "mujoco", "gymnasium", "format_version"} <= set(data.attributes)
    assert abs(data.actions).max() <= 1.0  # also in m and rad
