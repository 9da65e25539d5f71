import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffpolicy_rl import train
from diffpolicy_rl.cli import run
from diffpolicy_rl.errors import UserError
from diffpolicy_rl.training import config
from diffpolicy_rl.training.compose import compose, options, translate
from diffpolicy_rl.training.run import read_config

ROOT = Path(__file__).parents[1]
REQUIRED = {"custom": "agent=diffpolicy_rl.agents.bc:BC", "gymnasium": "env=Pendulum-v1", "file": "data=some.hdf5"}


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command line in an empty folder; returns exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        status = 0
        try:
            run(train.main)
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


def composed(*words):
    (settings,) = compose(words, sweep=False)
    return settings


@pytest.mark.parametrize(
    ("word", "overrides"),
    [
        ("agent=bc", ["agent=bc"]),
        ("agent=bc,reinflow", ["agent=bc,reinflow"]),
        ("agent=mine:My", ["agent=custom", "++agent._target_='mine:My'"]),
        ("env=Ant-v5", ["env=gymnasium", "++env.id='Ant-v5'"]),  # env=ant is another task: it sets options
        ("env=mine:It's-v0", ["env=gymnasium", "++env.id='mine:It\\'s-v0'"]),
        ("net=unet1d", ["net=unet1d"]),
        ("data=folder/a.hdf5", ["data=file", "++data.path='folder/a.hdf5'"]),
        ("data=hopper", ["data=hopper"]),
        ("agent.lr=1e-3", ["++agent.lr=1e-3"]),
        ("+seed=3", ["++seed=3"]),
        ("run_dir=runs/a=b", ["++run_dir=runs/a=b"]),
        ("env=Hopper-v5", ["env=hopper"]),
    ],
)
def test_translate(word, overrides):
    assert translate(word) == overrides


def test_own_files_without_a_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()
    assert translate("data=mine") == ["data=file", "++data.path='mine'"]


def place(data):
    """Where a data set lies: packaged or given ones under their name, those with a recipe where it is written."""
    file = ROOT / "configs" / "data" / f"{data}.yaml"
    made = file.exists() and "recipe" in yaml.safe_load(file.read_text())
    return f"data_out/{data}.hdf5" if made else data


def test_every_combination_composes():
    for agent, env, budget in itertools.product(*map(options, ("agent", "env", "budget"))):
        words = REQUIRED.get(agent, f"agent={agent}"), REQUIRED.get(env, f"env={env}")
        settings = composed(*words, f"budget={budget}")
        chosen = yaml.safe_load((ROOT / "configs" / "env" / f"{env}.yaml").read_text())["id"]
        assert settings.env.id == ("Pendulum-v1" if env == "gymnasium" else chosen)
        assert settings.data.path == (place(env) if env in options("data") else None)
        for component in (settings.agent, settings.bc, settings.policy.process, settings.policy.net):
            config.target(component["_target_"])
            assert set(component) == {"_target_", *config.settings(config.target(component["_target_"]))}


def test_presets_are_those_of_a_budget_an_agent_and_perhaps_a_task():
    of_agents = {"_".join(names) for names in itertools.product(options("budget"), options("agent"))}
    of_tasks = {f"{name}_{env}" for name in of_agents for env in options("env")}
    assert set(options("preset")) <= of_agents
    assert set(options("task_preset")) <= of_tasks
    offline = composed("agent=dql", "env=walker2d", "budget=paper", "agent.candidates=7")
    assert (offline.budget.offline_steps, offline.budget.env_steps) == (2_000_000, 0)
    assert (offline.agent["tau"], offline.agent["candidates"]) == (0.005, 7)  # words come last
    both = composed("agent=reinflow", "env=hopper", "budget=paper").agent
    assert (both["repeats"], both["lr"]) == (10, 4.5e-5)


def test_an_agent_brings_the_policy_it_is_published_with_and_takes_another():
    flow, ddpm, gaussian = ("RectifiedFlow", "DenoisingMLP"), ("DDPM", "DenoisingMLP"), ("Gaussian", "ConditionMLP")
    for agent, (process, net) in {"bc": flow, "dppo": ddpm, "ppo": gaussian, "reinflow": flow}.items():
        policy = composed(f"agent={agent}").policy
        assert policy.process["_target_"].endswith(process)
        assert policy.net["_target_"].endswith(net)
        for policy in options("policy"):
            chosen, alone = composed(f"agent={agent}", f"policy={policy}"), composed(f"policy={policy}")
            assert chosen.policy == alone.policy


@pytest.mark.parametrize("net", options("net"))
def test_every_net_composes_with_every_policy(net):
    source = yaml.safe_load((ROOT / "configs" / "net" / f"{net}.yaml").read_text())
    for policy in options("policy"):
        settings = composed(f"net={net}", f"policy={policy}")
        assert dataclasses.replace(settings.policy, net={}) == dataclasses.replace(
            composed(f"policy={policy}").policy, net={}
        )
        cls = config.target(source["_target_"])
        given = {"_target_", *config.settings(cls)}
        assert settings.policy.net["_target_"] == source["_target_"]
        assert set(settings.policy.net) == given > {"time_dim", "time_embedding"}
        cls(4, 2, 3, False, **config.arguments(settings.policy.net))  # the settings build a net


def test_settings_of_a_net():
    assert composed("net=unet1d", "policy.net.widths=[8]", "policy.net.groups=2").policy.net["widths"] == (8,)
    assert composed("policy.net.depth=1", "net=transformer").policy.net["depth"] == 1
    own = "policy.net._target_=diffpolicy_rl.nets.unet1d.ConditionalUNet1d"
    assert composed(own).policy == composed("net=unet1d").policy
    found = compose(["net=mlp,unet1d"], sweep=True)
    assert [run.policy.net for run in found] == [composed(word).policy.net for word in ("seed=0", "net=unet1d")]


def test_every_data_set_composes():
    for data in options("data"):
        word = REQUIRED.get(data, f"data={data}")
        assert composed("env=swimmer", word).data.path == place(word.partition("=")[2])


def test_files_hold_overrides_only():
    """What a default in the code says already is not repeated; every file starts with a comment for the help text."""
    assert composed().budget == config.BudgetConfig()
    plain = config.TrainConfig(composed().agent, config.EnvConfig("Hopper-v5"), data=config.DataConfig("hopper"))
    assert composed() == config.resolve(dataclasses.asdict(plain))
    settings = config.target(composed().agent["_target_"]).Config()
    assert config.arguments(composed().agent) == dataclasses.asdict(settings)
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert path.read_text().startswith("# "), path


def test_values_reach_their_place():
    settings = composed("agent=bc", "agent.lr=1", "bc.lr=2", "policy.net.hidden=[8]", "budget.env_steps=1e5", "seed=7")
    assert (settings.agent["lr"], settings.bc["lr"], settings.policy.net["hidden"]) == (1.0, 2.0, (8,))
    assert (settings.budget.env_steps, settings.seed) == (100_000, 7)
    assert composed("policy=ddpm", "policy.steps=5").policy.steps == 5
    one_step = composed("policy=meanflow", "policy.net.hidden=[8]").policy
    assert (one_step.steps, one_step.net["time_scale"], one_step.net["hidden"]) == (1, 3.0, (8,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("agent=renflow", "there is no agent 'renflow'; did you mean 'reinflow'?"),
        ("env=hoper", "there is no env 'hoper'; did you mean 'hopper'?"),
        ("data=hoper", "there is no data 'hoper'; did you mean 'hopper'?"),
        ("policy=flo", "there is no policy 'flo'; did you mean 'flow'?"),
        ("net=unet", "there is no net 'unet'; did you mean 'unet1d'?"),
        ("net.hidden=[8]", "there is no setting net.hidden; did you mean 'policy.net.hidden'?"),
        ("net=unet1d policy.net.activation=relu", "there is no setting policy.net.activation; known: groups, hidden"),
        ("base=x net=mlp", "net has no effect beside base="),
        ("budget=smok", "there is no budget 'smok'; did you mean 'smoke'?"),
        ("sead=1", "there is no setting sead; did you mean 'seed'?"),
        ("agent.lrr=1", "there is no setting agent.lrr; did you mean 'lr'?"),
        ("bc.lrr=1", "there is no setting bc.lrr; did you mean 'lr'?"),
        ("env.num_env=1", "there is no setting env.num_env; did you mean 'num_envs'?"),
        ("policy.net.hiden=[8]", "there is no setting policy.net.hiden; did you mean 'hidden'?"),
        ("policy.net.x=1", "there is no setting policy.net.x; known: activation, hidden"),
        ("policy.process.x=1", "there is no setting policy.process.x; known: "),
        ("policy.net=3", "policy.net=3 is not a group of settings"),
        ("agent.lr=fast", "agent.lr=fast is not a number"),
        ("policy.obs_norm=minmax", "policy.obs_norm=minmax is not a choice; did you mean 'min_max'?"),
        ("seed", "'seed' is not of the form key=value"),
        ("seed=1 seed=2", "seed is given twice"),
        ("seed=1,2", "seed=1,2 lists several values; add --multirun"),
        ("run_dir=x(1)", "cannot read the command line"),
        ("run_dir=${x}", "cannot read the command line"),
        ("preset=x", "cannot read the command line"),
        ("agent=custom", "agent._target_ has no value; choose one with agent="),
        ("env=gymnasium", "env.id has no value; choose one with env="),
        ("agent=no_module:X", "cannot find no_module:X"),
        ("agent=diffpolicy_rl.agents.bc:BCC", "cannot find diffpolicy_rl.agents.bc:BCC"),
        ("agent=.:X", "there is no agent '.:X'; known: bc, "),
        ("resume=nowhere", "nowhere is not a run"),
        ("resume=nowhere agent.lr=1", "agent.lr cannot change when a run is resumed"),
    ],
)
def test_mistakes_are_one_sentence(command, tmp_path, words, message):
    status, out, err = command(*words.split())
    sentence = err.splitlines()[-1]
    assert sentence.startswith("error: " + message)
    assert "Traceback" not in err
    assert (status, out) == (2, "")
    assert list(tmp_path.iterdir()) == []


def test_printed_settings_resolve_to_themselves(command, tmp_path):
    status, out, _ = command("agent=bc", "policy=ddpm", "bc.lr=0.5", "loggers=wandb", "--cfg", "job")
    assert status == 0
    assert config.resolve(yaml.safe_load(out)) == composed("agent=bc", "policy=ddpm", "bc.lr=0.5", "loggers=wandb")
    assert command("agent=bc", "policy=ddpm", "bc.lr=0.5", "loggers=wandb", "-c", "job")[1] == out
    _, out, _ = command("net=unet1d", "policy=ddpm", "policy.net.widths=[32,64]", "--cfg", "job")
    assert config.resolve(yaml.safe_load(out)) == composed("net=unet1d", "policy=ddpm", "policy.net.widths=[32,64]")
    assert list(tmp_path.iterdir()) == []


def test_help_lists_everything_without_loading_anything():
    code = "from diffpolicy_rl.train import main; import sys; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert not {"torch", "hydra", "gymnasium", "mujoco", "numpy", "h5py"} & set(done.stderr.split())
    for group in ("agent", "env", "data", "policy", "net", "budget"):
        names = [path.stem for path in (ROOT / "configs" / group).glob("*.yaml")]
        assert names
        section = done.stdout.partition(f"\n{group}:\n")[2].splitlines()[: len(names)]
        assert {line.split()[0] for line in section} == set(names)
        assert all(len(line.split()) > 2 for line in section)


@pytest.mark.parametrize("place", ["agent", "bc", "policy.net", "policy.process"])
def test_a_run_cannot_name_foreign_code(tmp_path, place):
    values = config.to_plain(composed())
    node = values
    for key in place.split("."):
        node = node[key]
    node["_target_"] = "os:system"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="code of the module os; if you trust it, add trust=os"):
        read_config(tmp_path)
    config.refuse_foreign_code(values, ("os",))
    node["_target_"] = "diffpolicy_rl_not.really:X"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"code of the module diffpolicy_rl_not\.really"):
        read_config(tmp_path)


def test_a_run_cannot_name_a_foreign_env_either(tmp_path):
    values = config.to_plain(composed("env=evil_module:Env-v0"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="code of the module evil_module"):
        read_config(tmp_path)
    assert read_config(tmp_path, ("evil_module",)).env.id == "evil_module:Env-v0"


def test_sweeps_are_every_combination():
    found = compose(["seed=0,1", "agent=bc,reinflow", "agent.lr=1e-3"], sweep=True)
    assert [(run.seed, run.agent["_target_"].rpartition(".")[2]) for run in found] == [
        (0, "BC"),
        (0, "ReinFlow"),
        (1, "BC"),
        (1, "ReinFlow"),
    ]
    assert {run.agent["lr"] for run in found} == {1e-3}


def test_settings_file_runs_no_code(tmp_path):
    (tmp_path / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'evil'}']")
    with pytest.raises(UserError, match="is not valid YAML"):
        read_config(tmp_path)
    assert not (tmp_path / "evil").exists()
