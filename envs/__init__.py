"""Vector environments: one contract (``diffpolicy_rl.types.VecEnv``), several simulators behind it.

``make.py`` builds an environment by id; importing this package alone loads neither torch nor a simulator.
"""
