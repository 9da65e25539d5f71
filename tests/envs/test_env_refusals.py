"""What cannot be run is refused in one sentence."""

import pytest
import torch

from diffpolicy_rl import make_env
from diffpolicy_rl.envs.tasks import TASKS
from diffpolicy_rl.errors import UserError


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (torch.zeros(2, 1, 3), r"the action has shape \(2, 1, 3\)"),
        (torch.tensor([[[0.0, float("nan"), 0.0]]]), "the action of row 0 is not finite"),
    ],
)
def test_bad_actions_are_refused(action, message):
    env = make_env("Hopper-v5")
    env.reset()
    with pytest.raises(UserError, match=message):
        env.step(action)


@pytest.mark.parametrize("velocity", [1e12, float("nan"), float("inf")])
def test_physics_that_diverge_are_reported_not_swallowed(velocity):
    """MuJoCo itself puts such a row back to its rest state and goes on."""
    env = make_env("HalfCheetah-v5", num_envs=2)
    env.reset()
    qvel = env.state()["qvel"]
    qvel[1] = velocity
    env.set_state(qvel=qvel)
    with pytest.raises(UserError, match="HalfCheetah-v5: the physics of row 1 diverged; reset it"):
        env.step(torch.ones(2, 1, 6))
    env.reset(mask=torch.tensor([False, True]))
    assert env.step(torch.ones(2, 1, 6))[0].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Hoper-v5",), "did you mean 'Hopper-v5'"),
        (("Unheard",), "known: .*Hopper-v5"),
        (("Hopper-v5", "bach"), "did you mean 'batch'"),
    ],
)
def test_misspelt_names_are_answered_with_the_right_one(arguments, message):
    env_id, backend = (*arguments, None)[:2]
    with pytest.raises(UserError, match=message):
        make_env(env_id, backend=backend)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ctrl_cost_wieght": 1.0}, "Hopper-v5 has no setting 'ctrl_cost_wieght'; did you mean 'ctrl_cost_weight'"),
        ({"num_envs": 0}, "num_envs=0 must be above 0"),
        ({"num_envs": -1, "backend": "gymnasium"}, "num_envs=-1 must be above 0"),
        ({"num_envs": -1, "backend": "workers"}, "num_envs=-1 must be above 0"),
        ({"chunk": 0}, "chunk=0 must be above 0"),
        ({"history": 0}, "history=0 must be above 0"),
        ({"threads": 0}, "threads=0 must be above 0"),
        ({"frame_skip": 0}, "frame_skip=0 must be above 0"),
        ({"max_episode_steps": 0}, "max_episode_steps=0 must be above 0"),
        ({"max_episode_steps": 0, "backend": "gymnasium"}, "Hopper-v5 cannot be made: .*max_episode_steps"),
        ({"nonsense": 1, "backend": "gymnasium"}, "Hopper-v5 cannot be made: .*nonsense"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message) as refusal:
        make_env("Hopper-v5", **settings)
    assert not str(refusal.value).endswith(".")


def test_bad_masks_are_refused():
    env = make_env("Hopper-v5", num_envs=2)
    env.reset()
    for mask in (torch.ones(3, dtype=torch.bool), torch.ones(2)):
        with pytest.raises(UserError, match=r"the reset mask must be bool with shape \(2,\)"):
            env.reset(mask=mask)


def test_ant_is_on_the_batch_backend_where_it_needs_no_contact_forces():
    silent = TASKS["Ant-v5"].required
    assert make_env("Ant-v5", **silent).backend == "batch"
    assert make_env("Ant-v5").backend == "gymnasium"
    assert make_env("Ant-v5").single_observation_space.shape == (105,)
    assert make_env("Ant-v5", include_cfrc_ext_in_observation=False).backend == "gymnasium"
    with pytest.raises(UserError, match="Ant-v5 needs contact_cost_weight=0 on the batch backend; or use backend=gym"):
        make_env("Ant-v5", backend="batch", include_cfrc_ext_in_observation=False, contact_cost_weight=1e-3)
    with pytest.raises(UserError, match="Ant-v5 has no setting 'helthy_reward'; did you mean 'healthy_reward'"):
        make_env("Ant-v5", helthy_reward=2.0, **silent)
