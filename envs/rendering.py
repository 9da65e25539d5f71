"""Frames of a MuJoCo model, where OpenGL works."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules come without types.)

import warnings
from functools import cache

import mujoco

from diffpolicy_rl.errors import UserError

_HEIGHT = _WIDTH = 480
_PROBE = "<mujoco><worldbody><geom size='1'/></worldbody></mujoco>"


def open_renderer(model: mujoco.MjModel) -> mujoco.Renderer:
    """A renderer for frames (480, 480, 3) of the model.

    Raises:
        UserError: if there is no OpenGL to render with.
    """
    problem = _opengl_problem()
    if problem:
        remedy = "install libEGL, or install libOSMesa and set MUJOCO_GL=osmesa before starting"
        raise UserError(f"nothing can be rendered ({problem}); {remedy}")
    return mujoco.Renderer(model, _HEIGHT, _WIDTH)


@cache
def _opengl_problem() -> str:
    """Why there is no OpenGL, or "" if there is; tried once, since MuJoCo aborts the process at the second failure."""
    try:
        with warnings.catch_warnings(action="ignore"):
            mujoco.Renderer(mujoco.MjModel.from_xml_string(_PROBE), _HEIGHT, _WIDTH).close()
    except Exception as error:  # every OpenGL loader raises a type of its own
        return str(error).partition(",")[0] or type(error).__name__
    return ""
