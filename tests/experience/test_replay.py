"""The ring, n-step returns over linked decisions, and mixing with demonstrations, by hand."""

import pytest
import torch

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experience.replay import Experience, ReplayBuffer

GAMMA = 0.5


def decision(time, terminated=(False, False), truncated=(False, False), executed=(2, 2)):
    """One decision of two envs with A = 2: rewards (time, 1) in env 0 and ten times that in env 1."""
    ran = torch.arange(2) < torch.tensor(executed).unsqueeze(1)
    rewards = torch.tensor([[time, 1.0], [10.0 * time, 10.0]]) * ran
    return {
        "obs": torch.tensor([[time], [100.0 + time]]),
        "extras": {"action": torch.full((2, 2, 1), float(time)), "w": torch.tensor([time, -time])},
        "rewards": rewards,
        "executed": torch.tensor(executed),
        "terminated": torch.tensor(terminated),
        "truncated": torch.tensor(truncated),
        "final_obs": torch.tensor([[time + 0.5], [100.5 + time]]),
    }


def filled(capacity=100):
    """Env 0 terminates at decision 2 after one action, env 1 is truncated at decision 1."""
    buffer = ReplayBuffer(capacity)
    buffer.add(**decision(0))
    buffer.add(**decision(1, truncated=(False, True)))
    buffer.add(**decision(2, terminated=(True, False), executed=(1, 2)))
    buffer.add(**decision(3))
    return buffer


def test_one_step_by_hand():
    batch = filled().decisions(torch.arange(8), GAMMA)
    # rows are env 0, env 1 of decisions 0, 1, 2, 3
    assert batch.obs[:, 0].tolist() == [0, 100, 1, 101, 2, 102, 3, 103]
    assert batch.next_obs[:, 0].tolist() == [0.5, 100.5, 1.5, 101.5, 2.5, 102.5, 3.5, 103.5]
    assert batch.reward.tolist() == [0.5, 5, 1.5, 15, 2, 25, 3.5, 35]
    assert batch.discount.tolist() == [0.25, 0.25, 0.25, 0.25, 0, 0.25, 0.25, 0.25]
    assert batch.mask.tolist() == [[True, True]] * 4 + [[True, False]] + [[True, True]] * 3
    assert batch.action[:, 1, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # env 1 starts anew after its truncation, env 0 after its termination; nothing follows the newest decisions yet
    assert batch.followed.tolist() == [True, True, True, False, False, True, False, False]
    assert batch.extras["w"].tolist() == [0, 0, 1, -1, 2, -2, 3, -3]
    assert batch.next_extras["w"][batch.followed].tolist() == [1, -1, 2, -3]


def test_three_steps_by_hand():
    batch = filled().decisions(torch.tensor([0, 1, 5]), GAMMA, n_step=3)
    # env 0: decisions 0, 1, 2, and terminated; env 1: 0, 1, and truncated; env 1 again: 2, 3, and no more is known
    assert batch.reward.tolist() == [0.5 + 1.5 / 4 + 2 / 16, 5 + 15 / 4, 25 + 35 / 4]
    assert batch.discount.tolist() == [0, 1 / 16, 1 / 16]
    assert batch.next_obs[:, 0].tolist() == [2.5, 101.5, 103.5]


def test_the_ring_overwrites_the_oldest_and_links_across_its_seam():
    buffer = ReplayBuffer(6)  # three decisions of two envs
    for time in range(5):
        buffer.add(**decision(time))
    assert len(buffer) == 6
    assert buffer.added == 10
    batch = buffer.decisions(torch.arange(6), GAMMA, n_step=2)
    assert batch.obs[:, 0].tolist() == [3, 103, 4, 104, 2, 102]
    assert batch.next_obs[:, 0].tolist() == [4.5, 104.5, 4.5, 104.5, 3.5, 103.5]
    seen = buffer.sample(500, GAMMA, 1, torch.Generator().manual_seed(0)).obs
    assert set(seen[:, 0].tolist()) == {2, 3, 4, 102, 103, 104}


def test_a_copy_that_is_given_the_state_goes_on_in_the_same_way():
    buffer, copy = filled(10), ReplayBuffer(10)
    copy.load_state_dict(buffer.state_dict())
    for ring in (buffer, copy):
        ring.add(**decision(4))
        ring.add(**decision(5))
    for name, field in buffer._fields.items():
        assert torch.equal(field, copy._fields[name]), name
    assert torch.equal(buffer._latest, copy._latest)


def test_nothing_follows_a_cut():
    buffer = ReplayBuffer(100)
    buffer.add(**decision(0))
    buffer.cut()
    buffer.add(**decision(1))
    buffer.add(**decision(2))
    assert buffer.decisions(torch.arange(6), GAMMA).followed.tolist() == [False, False, True, True, False, False]


def mixed():
    """60 decisions met and 20 shown, told apart by their w: 1 and 2."""
    online, shown = ReplayBuffer(1000), ReplayBuffer(1000)
    for _ in range(30):
        online.add(**decision(1))
    for _ in range(10):
        shown.add(**decision(2))
    return Experience(online, shown)


def test_mixing_takes_its_share_from_demonstrations():
    experience, generator = mixed(), torch.Generator().manual_seed(0)

    def share(mixing):
        batch = experience.sample(64, mixing, GAMMA, generator)
        assert len(batch) == 64
        first_half = (batch.extras["w"][:32].abs() == 2).sum().item()
        return (batch.extras["w"].abs() == 2).sum().item(), first_half

    assert share("none")[0] == 0
    total, first_half = share("half")
    assert total == 32
    assert 8 < first_half < 24  # mixed, so that any part of a batch is
    assert share("proportional")[0] == 16
    empty = Experience(ReplayBuffer(10), experience.demonstrations)
    assert (empty.sample(8, "half", GAMMA, generator).extras["w"].abs() == 2).all()


@pytest.mark.parametrize("mixing", ["none", "half", "proportional"])
def test_batches_drawn_together_are_each_mixed(mixing):
    experience, generator = mixed(), torch.Generator().manual_seed(0)
    batches = list(experience.batches(20, 64, mixing, GAMMA, generator))  # more than are drawn at once
    assert [len(batch) for batch in batches] == [64] * 20
    counts = [(batch.extras["w"].abs() == 2).sum().item() for batch in batches]
    assert counts == [{"none": 0, "half": 32, "proportional": 16}[mixing]] * 20
    rows = torch.stack([batch.obs.flatten() for batch in batches])
    assert len(rows.unique(dim=0)) == 20  # no two alike


def test_more_than_the_ring_holds_is_refused():
    with pytest.raises(UserError, match="capacity=3 is less than the 4 decisions"):
        ReplayBuffer(3).append({"obs": torch.zeros(4, 1)})
