import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from diffpolicy_rl.errors import UserError
from diffpolicy_rl.experts import load_expert

SPACE = Box(np.float32([-1.0, -2.0]), np.float32([1.0, 4.0]))


def sac_weights(obs=3, width=8, action=2, layers=12):
    """The actor's keys as Stable-Baselines3 names them, in shuffled order, beside a critic's."""
    generator = torch.Generator().manual_seed(0)
    shapes = {f"actor.latent_pi.{2 * i}": (width, obs if i == 0 else width) for i in range(layers)}
    shapes |= {"actor.mu": (action, width), "actor.log_std": (action, width), "critic.qf0.0": (1, obs + action)}
    weights = {}
    for name, (rows, columns) in sorted(shapes.items()):  # latent_pi.10 before latent_pi.2
        weights[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) / 2
        weights[f"{name}.bias"] = torch.randn(rows, generator=generator) / 5
    return weights


def save(path, content, name="policy.pth"):
    if not isinstance(content, bytes):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        content = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


@pytest.fixture
def expert(tmp_path):
    return save(tmp_path / "expert.zip", sac_weights())


def reference(weights, obs, noise=0.0):
    """The same forward pass in NumPy and float64."""
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}
    layer = obs
    for i in range(12):
        name = f"actor.latent_pi.{2 * i}"
        layer = np.maximum(layer @ weights[f"{name}.weight"].T + weights[f"{name}.bias"], 0)
    mean = layer @ weights["actor.mu.weight"].T + weights["actor.mu.bias"]
    log_std = layer @ weights["actor.log_std.weight"].T + weights["actor.log_std.bias"]
    std = np.exp(np.clip(log_std, -20, 2))
    return SPACE.low + (np.tanh(mean + std * noise) + 1) / 2 * (SPACE.high - SPACE.low)


def test_mean_action(expert):
    obs = torch.randn(5, 3)
    policy = load_expert(expert, 3, SPACE, stochastic=False)
    assert policy.noise_shape is None
    assert policy.execute == 1
    action = policy(obs, None)
    assert action.shape == (5, 1, 2)
    np.testing.assert_allclose(action[:, 0], reference(sac_weights(), obs.numpy()), atol=1e-5)
    assert (action > torch.from_numpy(SPACE.low) + 0.1).all()  # where tanh saturates, nothing is compared
    assert (action < torch.from_numpy(SPACE.high) - 0.1).all()


def test_stochastic_action_is_a_function_of_the_noise(expert):
    policy = load_expert(expert, 3, SPACE, stochastic=True)
    assert policy.noise_shape == (1, 2)
    obs, noise = torch.randn(400, 3), policy.sample_noise(400)
    action = policy(obs, noise)[:, 0]
    np.testing.assert_allclose(action, reference(sac_weights(), obs.numpy(), noise[:, 0].numpy()), atol=1e-4)
    assert (policy(obs[:1].expand(400, 3), noise)[:, 0].std(0) > 0.2).all()


def test_it_is_frozen(expert):
    policy = load_expert(expert, 3, SPACE, stochastic=True)
    assert not policy.training
    assert not any(parameter.requires_grad for parameter in policy.parameters())


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_the_file_does_not_run(tmp_path):
    mark = tmp_path / "was here"
    tensors = {"actor.mu.weight": torch.zeros(2, 2), "other": Malicious(mark)}
    for content in (pickle.dumps(Malicious(mark)), pickle.dumps(tensors), tensors):
        path = save(tmp_path / "evil.zip", content)
        with pytest.raises(UserError, match=r"evil\.zip is not a Stable-Baselines3 agent: \S") as caught:
            load_expert(path, 3, SPACE, stochastic=False)
        assert "\n" not in str(caught.value)
        assert not mark.exists()
    torch.load(io.BytesIO(zipfile.ZipFile(path).read("policy.pth")), weights_only=False)
    assert mark.exists()  # what a careless reader would have run


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", torch.zeros(3), [1, 2], {"actor.mu.weight": "text"}, {"a": {"b": torch.zeros(2)}}]
)
def test_other_content_is_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"a\.zip is not a Stable-Baselines3 agent: \S"):
        load_expert(save(tmp_path / "a.zip", content), 3, SPACE, stochastic=False)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.zip").write_text("text")
    for path in (tmp_path / "text.zip", tmp_path / "absent.zip", save(tmp_path / "a.zip", b"", "weights.pth")):
        with pytest.raises(UserError, match=rf"{path.name} is not a Stable-Baselines3 agent"):
            load_expert(path, 3, SPACE, stochastic=False)


def test_other_agents_are_refused(tmp_path):
    ppo = {"log_std": torch.zeros(2), "mlp_extractor.policy_net.0.weight": torch.zeros(8, 3)}
    sde = {name: tensor for name, tensor in sac_weights().items() if not name.startswith("actor.log_std")}
    sde["actor.log_std"] = torch.zeros(8, 2)
    cut = {name: tensor for name, tensor in sac_weights().items() if name != "actor.latent_pi.4.bias"}
    for weights in (ppo, sde, cut, {}):
        with pytest.raises(UserError, match="holds no SAC or TQC actor"):
            load_expert(save(tmp_path / "a.zip", weights), 3, SPACE, stochastic=False)


@pytest.mark.parametrize("shape", [{"obs": 4}, {"action": 1}])
def test_other_tasks_are_refused(tmp_path, shape):
    path = save(tmp_path / "a.zip", sac_weights(**shape))
    with pytest.raises(UserError, match=r"observations and actions of width .*, the task needs \(3, 2\)"):
        load_expert(path, 3, SPACE, stochastic=False)


def test_parity_with_stable_baselines3(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    model = sb3.SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16, 8]}, buffer_size=1, device="cpu")
    model.save(tmp_path / "sac.zip")
    policy = load_expert(tmp_path / "sac.zip", 3, model.action_space, stochastic=False)
    obs = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    expected, _ = model.predict(obs, deterministic=True)
    np.testing.assert_allclose(policy(torch.from_numpy(obs), None)[:, 0], expected, atol=1e-5)
    mean, log_std, _ = model.actor.get_action_dist_params(torch.from_numpy(obs))
    stochastic, noise = load_expert(tmp_path / "sac.zip", 3, model.action_space, stochastic=True), torch.randn(20, 1, 1)
    expected = model.policy.unscale_action(torch.tanh(mean + log_std.exp() * noise[:, 0]).detach().numpy())
    np.testing.assert_allclose(stochastic(torch.from_numpy(obs), noise)[:, 0], expected, atol=1e-5)
