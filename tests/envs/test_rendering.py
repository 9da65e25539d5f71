"""Frames, where this machine has OpenGL; one sentence where it has none."""

import ctypes.util
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import diffpolicy_rl.envs
from diffpolicy_rl import make_env
from diffpolicy_rl.errors import UserError


@pytest.mark.parametrize(
    ("env_id", "backend"), [("Hopper-v5", "batch"), ("Hopper-v5", "gymnasium"), ("PegInsertion-v0", "batch")]
)
def test_frames_show_the_first_row(env_id, backend):
    env = make_env(env_id, num_envs=2, backend=backend, render=True)
    env.reset(seed=0)
    try:
        frame = env.render()
    except UserError as error:
        pytest.skip(str(error))
    assert (frame.shape, frame.dtype.name) == ((480, 480, 3), "uint8")
    assert frame.std() > 5  # not a uniform picture
    env.close()


def test_rendering_leaves_the_simulation_alone():
    env = make_env("Hopper-v5", num_envs=2)
    env.reset(seed=0)
    before = env.state_dict()["integration_state"]
    try:
        env.render()
    except UserError as error:
        pytest.skip(str(error))
    assert env.state_dict()["integration_state"].equal(before)


def test_what_cannot_be_rendered_says_why():
    silent = make_env("Hopper-v5", backend="gymnasium")
    silent.reset(seed=0)
    with pytest.raises(UserError, match="make it with render_mode='rgb_array'"):
        silent.render()
    with pytest.raises(UserError, match="cannot be rendered from workers"):
        make_env("Hopper-v5", backend="workers").render()


def test_no_opengl_is_said_in_one_sentence():
    program = (
        "from diffpolicy_rl import make_env\n"
        "from diffpolicy_rl.errors import UserError\n"
        "for backend in ('batch', 'batch', 'gymnasium'):\n"
        "    env = make_env('Hopper-v5', backend=backend, render=True)\n"
        "    env.reset()\n"
        "    try:\n"
        "        env.render()\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    environment = os.environ | {"MUJOCO_GL": "off"}
    command, root = [sys.executable, "-c", program], Path(__file__).parents[2]
    told = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    ours, again, foreign = told.stdout.splitlines()
    assert ours.startswith("nothing can be rendered")
    assert again == ours
    assert foreign.startswith("Hopper-v5 cannot be rendered: ")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MuJoCo's own choice works")
@pytest.mark.parametrize(
    ("environment", "libraries", "chosen"),
    [
        ({}, {"EGL", "OSMesa"}, "egl"),
        ({}, {"OSMesa"}, "osmesa"),
        ({}, set(), ""),
        ({"DISPLAY": ":0"}, {"EGL"}, ""),
        ({"MUJOCO_GL": "glfw"}, {"EGL"}, "glfw"),
    ],
)
def test_opengl_without_a_display(monkeypatch, environment, libraries, chosen):
    for name in ("DISPLAY", "MUJOCO_GL"):
        monkeypatch.setenv(name, environment.get(name, ""))
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: name if name in libraries else None)
    importlib.reload(diffpolicy_rl.envs)
    assert os.environ["MUJOCO_GL"] == chosen
