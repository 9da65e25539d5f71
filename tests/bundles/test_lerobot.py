"""LeRobot's checkpoints: what is computed from their files alone, as LeRobot computes it, is what the policy does."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load as load_weights

from diffpolicy_rl import export, load, train
from diffpolicy_rl.bundles.lerobot import checkpoint_files
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.nets.chi_unet1d import ChiUNet1d
from diffpolicy_rl.nets.unet1d import ConditionalUNet1d
from diffpolicy_rl.policies.ddpm import DDPM
from diffpolicy_rl.policies.flow import RectifiedFlow
from diffpolicy_rl.policies.normalize import Normalizer
from diffpolicy_rl.policies.policy import GenerativePolicy
from diffpolicy_rl.training.compose import compose
from tests.training.tiny_run import tiny

OBS, D, H, A, STATE, LEVELS, ROWS = 7, 2, 8, 3, 5, 4, 6


def policy(process=None, net=None, steps=LEVELS, history=1, horizon=H, noise_scale=1.0, **sizes):
    sizes = {"widths": (16, 24, 32), "time_dim": 8, "time_scale": LEVELS, **sizes}
    net = net or ChiUNet1d(horizon, D, history * OBS, False, **sizes)
    normalizers = Normalizer((OBS,)), Normalizer((D,))
    for normalizer in normalizers:
        normalizer.set(torch.randn_like(normalizer.shift), 0.5 + torch.rand_like(normalizer.scale))
    process = process or DDPM(LEVELS, prediction="x0", clip=None)
    built = GenerativePolicy(net, process, *normalizers, horizon, A, steps, history, noise_scale)
    return built.requires_grad_(False)


class Reference:
    """A reading of LeRobot's diffusion policy: its U-Net by the names of its weights, and diffusers' schedulers."""

    def __init__(self, files):
        self.config = json.loads(files["config.json"])
        weights = load_weights(files["model.safetensors"])
        self.weights = {name.removeprefix("diffusion.unet."): weight for name, weight in weights.items()}
        self.unused = set(self.weights)
        (before,) = (
            load_weights(files[name]) for name in files if name.endswith("_step_3_normalizer_processor.safetensors")
        )
        (behind,) = (
            load_weights(files[name]) for name in files if name.endswith("_step_0_unnormalizer_processor.safetensors")
        )
        self.before, self.behind = before, behind

    def w(self, name):
        self.unused.discard(name)
        return self.weights[name]

    def layer(self, function, x, name, **options):
        return function(x, self.w(f"{name}.weight"), self.w(f"{name}.bias"), **options)

    def conv_block(self, x, name):
        x = self.layer(F.conv1d, x, f"{name}.block.0", padding=self.config["kernel_size"] // 2)
        weight, bias = self.w(f"{name}.block.1.weight"), self.w(f"{name}.block.1.bias")
        return F.mish(F.group_norm(x, self.config["n_groups"], weight, bias))

    def block(self, x, cond, name):
        film = self.layer(F.linear, F.mish(cond), f"{name}.cond_encoder.1").unsqueeze(-1)
        scale, shift = film.chunk(2, dim=1)
        out = self.conv_block(scale * self.conv_block(x, f"{name}.conv1") + shift, f"{name}.conv2")
        residual = f"{name}.residual_conv"
        return out + (self.layer(F.conv1d, x, residual) if f"{residual}.weight" in self.weights else x)

    def unet(self, x, step, cond):
        half = self.config["diffusion_step_embed_dim"] // 2
        angles = step * torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
        time = torch.cat([angles.sin(), angles.cos()]).expand(len(x), -1)
        time = F.mish(self.layer(F.linear, time, "diffusion_step_encoder.1"))
        cond = torch.cat([self.layer(F.linear, time, "diffusion_step_encoder.3"), cond], dim=1)
        x, across, depth = x.transpose(1, 2), [], len(self.config["down_dims"])
        for i in range(depth):
            x = self.block(self.block(x, cond, f"down_modules.{i}.0"), cond, f"down_modules.{i}.1")
            across.append(x)
            if i < depth - 1:
                x = self.layer(F.conv1d, x, f"down_modules.{i}.2", stride=2, padding=1)
        x = self.block(self.block(x, cond, "mid_modules.0"), cond, "mid_modules.1")
        for i in range(depth - 1):
            x = torch.cat([x, across.pop()], dim=1)
            x = self.block(self.block(x, cond, f"up_modules.{i}.0"), cond, f"up_modules.{i}.1")
            x = self.layer(F.conv_transpose1d, x, f"up_modules.{i}.2", stride=2, padding=1)
        return self.layer(F.conv1d, self.conv_block(x, "final_conv.0"), "final_conv.1").transpose(1, 2)

    def alphas_bar(self):
        levels = self.config["num_train_timesteps"]
        if self.config["beta_schedule"] == "linear":
            betas = torch.linspace(self.config["beta_start"], self.config["beta_end"], levels, dtype=torch.float64)
        else:
            assert self.config["beta_schedule"] == "squaredcos_cap_v2"
            ends = ((torch.arange(levels + 1, dtype=torch.float64) / levels + 0.008) / 1.008 * math.pi / 2).cos() ** 2
            betas = (1 - ends[1:] / ends[:-1]).clamp(max=0.999)
        return [1.0, *(1 - betas).cumprod(0).tolist()]  # of level j, which LeRobot calls step j - 1

    def act(self, obs, noise):
        """Actions (B, A, D), the first of a chunk, from initial noise and that of DDPM's moves (B, K + 1, H, D)."""
        assert self.config["num_inference_steps"] == self.config["num_train_timesteps"]
        names = [*self.config["input_features"]]
        sizes = [self.config["input_features"][name]["shape"][0] for name in names]
        parts = zip(names, obs.split(sizes, dim=1), strict=True)
        cond = torch.cat([(x - self.before[f"{n}.mean"]) / self.before[f"{n}.std"] for n, x in parts], dim=1)
        bars, x = self.alphas_bar(), noise[:, 0]
        for j in reversed(range(1, len(bars))):
            now, after = bars[j], bars[j - 1]
            out = self.unet(x, j - 1, cond)
            if self.config["prediction_type"] == "epsilon":
                eps, x0 = out, (x - (1 - now) ** 0.5 * out) / now**0.5
            else:
                eps, x0 = (x - now**0.5 * out) / (1 - now) ** 0.5, out
            if self.config["clip_sample"]:
                x0 = x0.clamp(-self.config["clip_sample_range"], self.config["clip_sample_range"])
            if self.config["noise_scheduler_type"] == "DDIM":
                x = after**0.5 * x0 + (1 - after) ** 0.5 * eps
            else:  # Ho et al. 2020, eq. 7
                alpha = now / after
                x = after**0.5 * (1 - alpha) / (1 - now) * x0 + alpha**0.5 * (1 - after) / (1 - now) * x
                x = x + ((1 - after) / (1 - now) * (1 - alpha)) ** 0.5 * noise[:, len(bars) - j] * (j > 1)
        chunk = x * self.behind["action.std"] + self.behind["action.mean"]
        return chunk[:, : self.config["n_action_steps"]]


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_the_files_say_what_the_policy_does(prediction, schedule, eta):
    deployed = policy(DDPM(LEVELS, schedule, prediction, clip=0.5 if eta else None)).deploy(eta)
    reference = Reference(checkpoint_files(deployed, STATE))
    obs, noise = torch.randn(ROWS, OBS), torch.randn(ROWS, LEVELS + 1, H, D)
    expected = deployed(obs, noise if eta else noise[:, 0])[:, :A]
    found = reference.act(obs, noise)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)
    assert not reference.unused
    assert expected.std() > 0.1


def test_one_level_is_enough():
    deployed = policy(widths=(16,), kernel=3).deploy()
    reference = Reference(checkpoint_files(deployed, STATE))
    obs, noise = torch.randn(ROWS, OBS), torch.randn(ROWS, LEVELS + 1, H, D)
    torch.testing.assert_close(reference.act(obs, noise), deployed(obs, noise[:, 0])[:, :A])


def test_moves_that_are_all_trained_are_one_nets():
    found = policy()
    found.freeze_early(LEVELS)  # as DPPO does with agent.trained_moves
    assert "model.safetensors" in checkpoint_files(found.deploy(), STATE)


def test_what_is_a_state_and_what_is_not():
    files = checkpoint_files(policy().deploy(), STATE)
    config, before = json.loads(files["config.json"]), json.loads(files["policy_preprocessor.json"])
    inputs = {
        "observation.state": {"type": "STATE", "shape": [STATE]},
        "observation.environment_state": {"type": "ENV", "shape": [OBS - STATE]},
    }
    assert config["type"] == "diffusion"
    assert config["input_features"] == inputs
    assert config["output_features"] == {"action": {"type": "ACTION", "shape": [D]}}
    assert (config["n_obs_steps"], config["horizon"], config["n_action_steps"]) == (1, H, A)
    kinds = ["rename_observations", "to_batch", "device", "normalizer"]
    assert [step["registry_name"] for step in before["steps"]] == [f"{kind}_processor" for kind in kinds]
    assert before["steps"][3]["config"]["features"] == inputs | config["output_features"]
    assert set(before["steps"][3]["config"]["norm_map"].values()) == {"MEAN_STD"}
    assert before["steps"][3]["state_file"] in files
    for state_dim in (0, OBS, -1):
        with pytest.raises(UserError, match=f"state_dim={state_dim} must leave each part at least one of 7"):
            checkpoint_files(policy().deploy(), state_dim)


def frozen():
    found = policy()
    found.freeze_early(2)
    return found.deploy()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: policy(RectifiedFlow()).deploy(),
            "LeRobot has no RectifiedFlow on ChiUNet1d; train with policy=lerobot",
        ),
        (lambda: policy(net=ConditionalUNet1d(H, D, OBS, False)).deploy(), "LeRobot has no DDPM on ConditionalUNet1d"),
        (frozen, "a frozen copy of the net makes the first moves; train with agent.trained_moves=4"),
        (
            lambda: policy(steps=2).deploy(),
            "the policy skips levels, and LeRobot would skip others; train with policy.process.levels=2",
        ),
        (
            lambda: policy(DDPM(LEVELS, "vp", "x0", None)).deploy(),
            "LeRobot has no schedule vp; train with policy.process.schedule=cosine",
        ),
        (lambda: policy(noise_scale=0.5).deploy(), "LeRobot samples from all of the noise, but not from 0.5 of it"),
        (lambda: policy().deploy(0.5), "LeRobot has DDIM and DDPM, eta 0 and 1, but not 0.5"),
        (lambda: policy(DDPM(LEVELS)).deploy(), "LeRobot's DDIM clips otherwise; train with policy.process.clip=null"),
        (lambda: policy(time_scale=100.0).deploy(), "train with policy.net.time_scale=4, sinusoidal"),
        (lambda: policy(time_dim=2).deploy(), "LeRobot cannot embed a number in two; train with policy.net.time_dim=4"),
        (lambda: policy(time_embedding="fourier").deploy(), "train with policy.net.time_scale=4, sinusoidal"),
        (lambda: policy(horizon=4).deploy(), "LeRobot wants policy.horizon=4 divisible by 8"),
        (lambda: policy(history=2).deploy(), "the policy sees a history; train with env.history=1"),
    ],
)
def test_what_lerobot_would_compute_otherwise_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        checkpoint_files(build(), STATE)


def test_the_command_writes_a_run_as_it_is_deployed(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "made" / "checkpoint"
    (asked,) = compose(["agent=bc", "env=hopper", "policy=lerobot", "policy.net.widths=[16]"], sweep=False)
    names = ("process", "net", "steps", "horizon", "execute")
    train.train(tiny(run, "bc", policy={name: getattr(asked.policy, name) for name in names}))
    words = [str(run), f"out={out}", "format=lerobot"]
    export.main([*words, "state_dim=5"])
    assert "wrote" in capsys.readouterr().out
    reference = Reference({path.name: path.read_bytes() for path in out.iterdir()})
    obs, noise = torch.randn(ROWS, 11), torch.randn(ROWS, 11, 8, 3)
    torch.testing.assert_close(reference.act(obs, noise), load(run)(obs, noise[:, 0])[:, :4], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="checkpoint exists already"):
        export.main([*words, "state_dim=5"])
    for more, message in (
        ([], "format=lerobot needs state_dim"),
        (["state_dim=5", "rate_hz=50"], "format=lerobot has no place for rate_hz"),
        (["state_dim=5", "format=bundle"], "format=bundle has no place for state_dim"),
        (["state_dim=11"], "state_dim=11 must leave each part at least one of 11"),
    ):
        given = {word.partition("=")[0]: word for word in [*words, f"out={tmp_path / 'other'}", *more]}
        with pytest.raises(UserError, match=message):
            export.main([*given.values()])
    assert not (tmp_path / "other").exists()
