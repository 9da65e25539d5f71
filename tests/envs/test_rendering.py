import pytest

from diffpolicy_rl import make_env
from diffpolicy_rl.errors import UserError


def frame_of(env):
    """A frame, or None where this machine has no OpenGL, which must be said in one sentence."""
    try:
        return env.render()
    except UserError as error:
        assert "rendered" in str(error)  # noqa: PT017
        return None


@pytest.mark.parametrize("backend", ["batch", "gymnasium"])
def test_frames_show_the_first_row(backend):
    env = make_env("Hopper-v5", num_envs=2, backend=backend, render=backend == "gymnasium")
    env.reset(seed=0)
    frame = frame_of(env)
    if frame is not None:
        assert (frame.shape, frame.dtype.name) == ((480, 480, 3), "uint8")
        assert frame.std() > 5  # not a uniform picture
    env.close()


def test_what_cannot_be_rendered_says_why():
    silent = make_env("Hopper-v5", backend="gymnasium")
    silent.reset(seed=0)
    with pytest.raises(UserError, match="make it with render_mode='rgb_array'"):
        silent.render()
    with pytest.raises(UserError, match="cannot be rendered from workers"):
        make_env("Hopper-v5", backend="workers").render()
