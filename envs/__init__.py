"""Vector environments: one contract (``diffpolicy_rl.types.VecEnv``), several simulators behind it.

``make.py`` builds an environment by id; importing this package alone loads neither torch nor a simulator.
"""

import ctypes.util
import os
import sys

# MuJoCo chooses its OpenGL when it is imported, and without a display its own choice cannot render.
if sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get("MUJOCO_GL"):
    for library in ("EGL", "OSMesa"):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = library.lower()
            break
