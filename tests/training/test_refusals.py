"""Settings that cannot work are refused in one sentence, before anything is written."""

import pytest

from diffpolicy_rl import train
from diffpolicy_rl.errors import UserError

SMALL = ["budget=smoke", "video=false", "policy.net.hidden=[8,8,8]"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("agent=bc base=somewhere", "is not a run"),
        ("base=somewhere policy.steps=2", "policy.steps has no effect beside base="),
        ("base=somewhere data=hopper", "data has no effect beside base="),
        ("seed=-1", "seed=-1 must not be negative"),
        ("agent.std_hold=1", "std_hold=1.0"),
        ("agent.std_low=0.3", "std_low=0.3 and std_high=0.24"),
        ("agent.critic_hidden=[]", "hidden=\\[\\]"),
        ("agent.gamma=1.5", "gamma=1.5"),
        ("agent.minibatch=1", "minibatch=1, but"),
        ("agent.lr=-1", "lr=-1.0 must be above 0"),
        ("bc.lr=-1", "lr=-1.0 must be above 0"),
        ("budget.decisions=0", "decisions=0 must be above 0"),
        ("policy.execute=9", "policy.execute=9 must lie between 1 and policy.horizon=4"),
        ("policy.noise_scale=-1", "noise_scale=-1.0 must not be negative"),
        ("agent=td3_bc policy.noise_scale=0.5", "policy.noise_scale=0.5, but a Gaussian policy does not"),
        ("policy.net.time_dim=15", "time_dim=15"),
        ("net=unet1d policy.horizon=5", "policy.horizon=5 must be divisible by 2"),
        ("net=transformer policy.net.heads=5", "width=128 must be a multiple of heads=5"),
        ("base=somewhere net=mlp", "net has no effect beside base="),
        ("policy=ddpm policy.process.levels=0", "levels=0 must be above 0"),
        ("policy=ddpm policy.steps=3", "policy.steps=3 must divide"),
        ("agent=math:sin", "math:sin has no phase to run"),
        ("agent._target_=foo", "'foo' does not name a class"),
        ("env.options.max_episode_steps=abc", "max_episode_steps=abc is not of the kind of its default 1000"),
        ("env.options.healthy_z_range=1", "healthy_z_range=1 is not of the kind"),
        ("--multirun seed=0,1 run_dir=here", "run_dir cannot be given to several runs"),
        ("env=swimmer", "has no packaged demonstrations"),
        ("data=missing.hdf5", "there is no data file missing.hdf5"),
    ],
)
def test_refusal(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    given = words.split()
    keys = [word.partition("=")[0] for word in given]
    with pytest.raises(UserError, match=message):
        train.main([*given, *[word for word in SMALL if word.partition("=")[0] not in keys and "base" not in keys]])
    assert list(tmp_path.iterdir()) == []


def test_cloning_cannot_start_from_a_clone(tmp_path):
    train.main([*SMALL, "agent=bc", "iterations=1", f"run_dir={tmp_path / 'bc'}"])
    with pytest.raises(UserError, match="has no phase to run but cloning, which base= replaces"):
        train.main(["agent=bc", f"base={tmp_path / 'bc'}"])
