"""What every backend promises: chunks, freezing, truncation, masked reset, history, seeds."""

import pytest
import torch
from gymnasium.vector import AutoresetMode

from diffpolicy_rl import make_env
from diffpolicy_rl.envs.tasks import TASKS
from diffpolicy_rl.errors import UserError

N = 3


def actions(steps, n=N, dim=3, seed=0):
    return 2 * torch.rand(n, steps, dim, generator=torch.Generator().manual_seed(seed)) - 1


def play(env, chunks):
    """Every result of stepping through the chunks (N, T, A, D), as a list."""
    env.reset(seed=7)
    return [env.step(chunk) for chunk in chunks.unbind(1)]


def test_what_step_returns():
    env = make_env("Hopper-v5", num_envs=N, chunk=4)
    obs, info = env.reset(seed=0)
    assert (obs.shape, obs.dtype, info) == ((N, 11), torch.float32, {})
    obs, reward, terminated, truncated, info = env.step(actions(4))
    assert (obs.shape, reward.shape, terminated.dtype, truncated.dtype) == ((N, 11), (N,), torch.bool, torch.bool)
    assert info.keys() == {"rewards", "executed", "final_obs", "_final_obs"}
    assert (info["rewards"].shape, info["executed"].dtype) == ((N, 4), torch.int64)
    torch.testing.assert_close(reward, info["rewards"].sum(1))
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.action_space.shape == (N, 4, 3)
    assert env.single_action_space.shape == (3,)


def test_chunks_equal_single_steps_up_to_the_end_of_an_episode():
    """A falling hopper ends inside chunks: what it did until then is what single steps do; after that it is frozen."""
    chunk = 4
    moves = actions(40 * chunk)
    whole = make_env("Hopper-v5", num_envs=N, chunk=chunk, dtype=torch.float64)
    single = make_env("Hopper-v5", num_envs=N, dtype=torch.float64)
    obs, _ = whole.reset(seed=7)
    expected, _ = single.reset(seed=7)
    ended_inside = 0
    for at in range(0, moves.shape[1], chunk):
        assert torch.equal(obs, expected)
        rewards, executed = torch.zeros(N, chunk, dtype=torch.float64), torch.zeros(N, dtype=torch.long)
        done, final = torch.zeros(N, dtype=torch.bool), torch.zeros(N, 11, dtype=torch.float64)
        saved = {}
        for index in range(chunk):
            state = single.state_dict()
            expected, reward, terminated, truncated, info = single.step(moves[:, at + index : at + index + 1])
            rewards[~done, index] = reward[~done]
            executed += ~done
            final = torch.where(done[:, None], final, info["final_obs"])
            for row in (terminated & ~done).nonzero().flatten().tolist():
                saved[row] = expected[row].clone()
            done |= terminated | truncated
            assert state["elapsed"].max() < 1000
        obs, _, terminated, truncated, info = whole.step(moves[:, at : at + chunk])
        torch.testing.assert_close(info["rewards"], rewards, rtol=0, atol=1e-12)
        assert torch.equal(info["executed"], executed)
        assert torch.equal(terminated, done)
        assert torch.equal(info["_final_obs"], done)
        assert not truncated.any()
        assert torch.equal(info["final_obs"], final)
        for row, first in saved.items():
            ended_inside += int(executed[row] < chunk)
            assert torch.equal(obs[row], first)  # the next episode's first observation
        if done.any():  # single steps went on with the next episode: start both anew
            obs, _ = whole.reset(seed=at)
            expected, _ = single.reset(seed=at)
    assert ended_inside > 0


def test_progress_that_lags_is_the_same_in_chunks():
    """Ant is paid by a place that is no function of its position: it is carried from step to step."""
    settings = {"healthy_z_range": (0.5, 0.7), "terminate_when_unhealthy": False, "max_episode_steps": 8}
    settings |= TASKS["Ant-v5"].required | {"num_envs": N, "dtype": torch.float64}
    moves = actions(24, dim=8)
    single = [step[4]["rewards"] for step in play(make_env("Ant-v5", **settings), moves.unsqueeze(2))]
    whole = play(make_env("Ant-v5", chunk=4, **settings), moves.view(N, 6, 4, 8))
    assert sum(step[3].all() for step in whole) == 3
    torch.testing.assert_close(torch.cat([step[4]["rewards"] for step in whole], 1), torch.cat(single, 1))


@pytest.mark.parametrize(("limit", "executed"), [(8, 4), (6, 2)])
def test_time_limit_truncates_at_a_chunk_s_end_or_inside_it(limit, executed):
    moves = actions(8, 2, 6)
    endless = make_env("HalfCheetah-v5", num_envs=2, dtype=torch.float64)
    plain = [step[4] for step in play(endless, moves.unsqueeze(2))]
    env = make_env("HalfCheetah-v5", num_envs=2, chunk=4, max_episode_steps=limit, dtype=torch.float64)
    first, second = play(env, moves.view(2, 2, 4, 6))
    assert not (first[3] | first[2]).any()
    obs, reward, terminated, truncated, info = second
    assert truncated.all()
    assert not terminated.any()
    assert info["executed"].tolist() == [executed] * 2
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for index in range(executed):
        expected[:, index] = plain[4 + index]["rewards"][:, 0]
    torch.testing.assert_close(info["rewards"], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(reward, expected.sum(1), rtol=0, atol=1e-12)
    assert torch.equal(info["final_obs"], plain[limit - 1]["final_obs"])
    env.reset(seed=7)
    assert torch.equal(env.reset()[0], obs)  # the next episode's first observation


def test_falling_at_the_time_limit_terminates():
    """Gymnasium sets both flags; here termination wins, since a fall has no future to bootstrap from."""
    env = make_env("Hopper-v5", dtype=torch.float64)
    env.reset(seed=0)
    steps = 0
    while True:
        _, _, terminated, _, _ = env.step(torch.ones(1, 1, 3))
        steps += 1
        if terminated:
            break
    env = make_env("Hopper-v5", dtype=torch.float64, max_episode_steps=steps)
    env.reset(seed=0)
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(torch.ones(1, 1, 3))
    assert (terminated.item(), truncated.item()) == (True, False)


def test_masked_reset_touches_the_masked_rows_alone():
    env = make_env("Hopper-v5", num_envs=N)
    play(env, actions(5).unsqueeze(2))
    before, state = env.observation(), env.state()
    obs, _ = env.reset(mask=torch.tensor([False, True, False]))
    assert torch.equal(obs[[0, 2]], before[[0, 2]])
    assert torch.equal(env.state()["qpos"][[0, 2]], state["qpos"][[0, 2]])
    assert not torch.equal(obs[1], before[1])
    assert env.state_dict()["elapsed"].tolist() == [5, 0, 5]


def test_first_reset_covers_all_rows_and_comes_before_step():
    env = make_env("Hopper-v5", num_envs=2)
    with pytest.raises(UserError, match=r"call reset\(\) before step"):
        env.step(torch.zeros(2, 1, 3))
    with pytest.raises(UserError, match="first reset must cover all rows"):
        env.reset(mask=torch.tensor([True, False]))


def test_a_row_depends_on_seed_and_row_alone():
    wide, narrow = make_env("Hopper-v5", num_envs=4), make_env("Hopper-v5", num_envs=2)
    moves = actions(60, 4)
    for (a, *_), (b, *_) in zip(play(wide, moves.unsqueeze(2)), play(narrow, moves[:2].unsqueeze(2)), strict=True):
        assert torch.equal(a[:2], b)
    assert not torch.equal(wide.reset(seed=7)[0], wide.reset(seed=8)[0])
    first = wide.reset(seed=7)[0]
    assert not torch.equal(first, wide.reset()[0])  # without a seed: the next episode
    assert len(first.unique(dim=0)) == 4


COSTLY = {
    "SafeHopper-v5": {"speed_limit": 0.0},
    "SafeWalker2d-v5": {"speed_limit": 0.0},
    "SafeHalfCheetah-v5": {"speed_limit": 0.0},
    "PointRobot-v0": {"anywhere": True},
}


@pytest.mark.parametrize("env_id", COSTLY)
def test_costs_come_like_rewards(env_id):
    envs = [make_env(env_id, num_envs=32, chunk=chunk, **COSTLY[env_id]) for chunk in (1, 4)]
    dim = envs[0].single_action_space.shape[0]
    moves = actions(40, 32, dim)
    single, whole = play(envs[0], moves.unsqueeze(2)), play(envs[1], moves.view(32, 10, 4, dim))
    ended = torch.zeros(32, dtype=torch.bool)
    for index, (*_, info) in enumerate(whole):
        assert info["costs"].shape == (32, 4)
        assert torch.equal(info["cost"], info["costs"].sum(1))
        frozen = torch.arange(4) >= info["executed"][:, None]
        assert not info["costs"][frozen].any()
        expected = torch.cat([step[4]["costs"] for step in single[4 * index : 4 * index + 4]], 1).masked_fill(frozen, 0)
        assert torch.equal(info["costs"][~ended], expected[~ended])
        ended |= info["_final_obs"]  # from here on, single steps are ahead
    assert set(torch.cat([step[4]["costs"] for step in single]).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("env_id", "dim"), [("Walker2d-v5", 6), ("PegInsertion-v0", 4), ("PointMaze-v0", 2), ("PointRobot-v0", 2)]
)
def test_threads_do_not_matter(env_id, dim):
    results = [play(make_env(env_id, num_envs=5, threads=t), actions(30, 5, dim).unsqueeze(2)) for t in (1, 2)]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_history_stacks_what_single_steps_show(chunk):
    moves = actions(120)
    plain = make_env("Hopper-v5", num_envs=N)
    first, _ = plain.reset(seed=7)
    shown = [first, first, first, *(plain.step(move)[4]["final_obs"] for move in moves.unsqueeze(2).unbind(1))]
    env = make_env("Hopper-v5", num_envs=N, chunk=chunk, history=3)
    obs, _ = env.reset(seed=7)
    assert torch.equal(obs, torch.stack(shown[:3], dim=1))
    steps, alive = torch.zeros(N, dtype=torch.long), torch.ones(N, dtype=torch.bool)
    for at in range(0, 120, chunk):
        obs, _, terminated, _, info = env.step(moves[:, at : at + chunk])
        steps += info["executed"]
        for row in alive.nonzero().flatten().tolist():
            expected = torch.stack([shown[steps[row] + k][row] for k in range(3)])
            assert torch.equal(info["final_obs"][row], expected)
            assert torch.equal(obs[row], obs[row, :1].expand(3, 11) if terminated[row] else expected)
        alive &= ~terminated
    assert not alive.any()  # every row went through the end of an episode


def test_what_is_returned_may_be_written_to():
    env = make_env("Hopper-v5", num_envs=N)
    for returned in (env.reset(seed=0)[0], env.observation(), env.step(actions(1))[0]):
        kept = env.observation().clone()
        returned.fill_(7.0)
        assert torch.equal(env.observation(), kept)


def test_actions_are_clipped_to_the_box():
    wild, tame = make_env("Hopper-v5"), make_env("Hopper-v5")
    for env in (wild, tame):
        env.reset(seed=0)
    assert torch.equal(wild.step(torch.full((1, 1, 3), 50.0))[1], tame.step(torch.ones(1, 1, 3))[1])
