import pytest
import torch

from diffpolicy_rl.experience.selectors import argmax, gumbel, sample_softmax, top_k

VALUES = torch.tensor([[1.0, 9.0], [5.0, 2.0], [3.0, 4.0]])  # M = 3, B = 2
CANDIDATES = torch.arange(3 * 2 * 4.0).view(3, 2, 2, 2)  # H = D = 2


def test_argmax_by_hand():
    choice = argmax(VALUES, CANDIDATES)
    assert choice.indices.tolist() == [1, 0]
    assert choice.values.tolist() == [5, 9]
    assert torch.equal(choice.actions, torch.stack([CANDIDATES[1, 0], CANDIDATES[0, 1]]))


def test_top_k_by_hand():
    choice = top_k(VALUES, CANDIDATES, 2)
    assert choice.indices.tolist() == [[1, 0], [2, 2]]
    assert choice.values.tolist() == [[5, 9], [3, 4]]
    best, second = argmax(VALUES, CANDIDATES).actions, torch.stack([CANDIDATES[2, 0], CANDIDATES[2, 1]])
    assert torch.equal(choice.actions, torch.stack([best, second]))
    assert top_k(VALUES, CANDIDATES, 9).values.tolist() == [[5, 9], [3, 4], [1, 2]]


def test_softmax_draws_in_proportion():
    rows = 20000
    values = torch.tensor([0.0, 1.0, -1.0, 2.0]).unsqueeze(1).expand(4, rows)
    candidates = torch.arange(4.0).view(4, 1, 1, 1).expand(4, rows, 1, 1)
    choice = sample_softmax(values, candidates, torch.rand(rows, generator=torch.Generator().manual_seed(0)))
    drawn = choice.indices.bincount(minlength=4) / rows
    torch.testing.assert_close(drawn, values[:, 0].softmax(0), atol=0.012, rtol=0)  # about 3.5 standard errors
    assert torch.equal(choice.actions.flatten(), choice.indices.float())
    assert torch.equal(choice.values, values[choice.indices, 0])


def test_softmax_by_hand():
    values = torch.tensor([0.2, 0.5, 0.3]).log().unsqueeze(1).expand(3, 6)
    choice = sample_softmax(values, torch.zeros(3, 6, 1), torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.99]))
    assert choice.indices.tolist() == [0, 0, 1, 1, 2, 2]


def test_softmax_never_draws_what_has_no_probability():
    values = torch.tensor([-1e9, 0.0, -1e9]).unsqueeze(1).expand(3, 5000)
    choice = sample_softmax(values, torch.zeros(3, 5000, 1), torch.arange(5000) / 5000)
    assert (choice.indices == 1).all()


def test_luck_draws_in_proportion():
    """The same proportions as those of ``sample_softmax``."""
    values = torch.tensor([0.0, 1.0, -1.0, 2.0])
    luck = gumbel(torch.randn(4, 20000, generator=torch.Generator().manual_seed(0)))
    assert luck.mean().item() == pytest.approx(0.5772, abs=0.01)  # Euler's constant, a standard Gumbel's mean
    drawn = (values.unsqueeze(1) + luck).argmax(0).bincount(minlength=4) / 20000
    torch.testing.assert_close(drawn, values.softmax(0), atol=0.012, rtol=0)


def test_luck_is_finite_however_far_out_the_normal_number():
    assert gumbel(torch.tensor([-40.0, -6.0, 0.0, 6.0, 40.0])).isfinite().all()
