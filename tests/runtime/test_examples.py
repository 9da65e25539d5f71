import dataclasses
import itertools
import time
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.examples import mujoco_robot, ros2_node
from diffpolicy_rl.runtime.examples.loop import ControlLoop
from diffpolicy_rl.runtime.manifest import Control, Limits, Manifest, Port
from diffpolicy_rl.runtime.watchdog import State
from tests.runtime.served import FakePolicy, H, serving

RATE = 25.0


def balance_manifest():
    """The inverted pendulum's: position, angle and their rates in, a force out."""
    return Manifest(
        name="balance",
        algorithm="bc",
        created="2030-01-01T00:00:00Z",
        inputs=(Port("state", (4,), "float32", ("x", "angle", "x.velocity", "angle.velocity"), None),),
        noise=None,
        output=Port("actions", (H, 1), "float32", None, None),
        control=Control(RATE, H, 1, 5.0, 2e3 / RATE),
        limits=Limits((-3.0,), (3.0,)),
        graphs={"policy": "policy.onnx"},
        files=(),
        source={},
    )


def balance(obs):
    """A proportional and derivative controller that keeps the pole up."""
    force = obs["state"] @ np.array([0.3, 6.0, 0.5, 1.2])
    return np.repeat(np.clip(force, -3, 3)[:, None, None], H, 1).astype(np.float32)


def ticks(loop, state, count, wanted):
    """Tick in real time until a state has come; returns the commands."""
    commands = []
    for _ in range(count):
        loop.observe({"state": np.asarray(state, np.float32)})
        commands.append(loop.tick())
        if commands[-1].state is wanted and len(commands) > 1:
            return commands
        time.sleep(1 / RATE)
    raise AssertionError(f"never {wanted}: {[command.state for command in commands]}")


def test_the_robot_holds_while_the_server_is_away_and_goes_on_when_it_is_back():
    policy = FakePolicy(balance_manifest(), act=lambda obs: np.full((1, H, 1), 2.0, np.float32))
    with serving(policy) as live:
        client = live.client(timeout_s=0.2)
        loop = ControlLoop(client, client.limits, RATE)
        loop.reset(np.zeros(1))
        last = ticks(loop, np.zeros(4), 50, State.RUN)[-1]
        port = live.port
    away = ticks(loop, np.zeros(4), 50, State.STOP)
    assert len(away) < 4 + H  # what was planned, and three periods
    held = loop.tick().filtered.action
    np.testing.assert_allclose(loop.tick().filtered.action, held)
    assert last.filtered.action <= 3.0
    with serving(policy, port=port):
        ticks(loop, np.zeros(4), 50, State.RUN)
        client.close()


def test_no_observations_no_motion():
    with serving(FakePolicy(balance_manifest(), act=balance)) as live, live.client() as client:
        loop = ControlLoop(client, client.limits, RATE)
        loop.reset(np.array([0.5]))
        for _ in range(5):
            command = loop.tick()
            np.testing.assert_array_equal(command.filtered.action, [0.5])
            assert command.state is not State.RUN
            time.sleep(1 / RATE)


def test_a_robot_that_is_no_longer_seen_is_held_though_there_is_a_plan():
    calls = itertools.count(1)
    policy = FakePolicy(balance_manifest(), act=lambda obs: np.full((1, H, 1), 0.01 * next(calls), np.float32))
    with serving(policy) as live, live.client() as client:
        loop = ControlLoop(client, client.limits, RATE)
        loop.reset(np.zeros(1))
        ticks(loop, np.zeros(4), 50, State.RUN)
        commands = []
        for _ in range(12):
            commands.append(loop.tick())
            time.sleep(1 / RATE)
    states = [command.state for command in commands]
    assert State.HOLD in states
    assert states[-6:] == [State.STOP] * 6  # what is planned, but not executed, is no action
    assert len({float(command.filtered.action[0]) for command in commands[-6:]}) == 1


@pytest.mark.parametrize("ticking", [True, False])
@pytest.mark.parametrize("horizon", [1, H])
def test_nothing_that_was_planned_before_a_silence_is_executed_after_it(horizon, ticking):
    manifest = balance_manifest()
    output = dataclasses.replace(manifest.output, shape=(horizon, 1))
    control = dataclasses.replace(manifest.control, horizon=horizon)
    policy = FakePolicy(
        dataclasses.replace(manifest, output=output, control=control),
        act=lambda obs: np.repeat(obs["state"][:, None, :1], horizon, 1),  # where it was seen
    )
    with serving(policy) as live, live.client() as client:
        loop = ControlLoop(client, client.limits, RATE)
        loop.reset(np.zeros(1))
        before = ticks(loop, [1, 0, 0, 0], 50, State.RUN)
        assert before[-1].filtered.action == [1]
        for _ in range(5):
            if ticking:
                held = loop.tick()
            time.sleep(1 / RATE)
        if ticking:
            asked = len(policy.seen)
            assert held.state is State.STOP
            assert loop.tick().state is State.STOP
            assert len(policy.seen) == asked
        after = []
        for _ in range(12):
            loop.observe({"state": np.array([-1, 0, 0, 0], np.float32)})
            after.append(loop.tick())
            time.sleep(1 / RATE)
    assert {float(command.filtered.action[0]) for command in after if not command.filtered.flags} == {-1.0}


def test_a_pendulum_is_balanced_through_the_server():
    """25 Hz for 2 s of this machine's clock: a reward of 1 for every tick that the pole is up."""
    env = gymnasium.make("InvertedPendulum-v5")
    with serving(FakePolicy(balance_manifest(), act=balance)) as live, live.client() as client:
        began = time.monotonic()
        log = mujoco_robot.drive(env, client, RATE, seconds=2.0, seed=0)
        assert 1.9 < time.monotonic() - began < 10
    assert sum(log.returns) >= 45
    assert sum(log.states.values()) == len(log.physics) == 50
    assert log.states["run"] >= 40
    assert "mean return" in str(log)


def test_an_unstable_policy_is_kept_within_the_limits():
    env = gymnasium.make("InvertedPendulum-v5")
    wild = FakePolicy(balance_manifest(), act=lambda obs: np.full((1, H, 1), 1e30, np.float32))
    given = []
    step = env.step
    env.step = lambda action: given.append(float(action[0])) or step(action)
    with serving(wild) as live, live.client() as client:
        log = mujoco_robot.drive(env, client, 50.0, seconds=0.5, seed=0)
    assert max(map(abs, given)) <= 3.0
    assert log.changed > 5


def test_the_film_is_written_or_why_not_is_said(tmp_path):
    log = mujoco_robot.Log(physics=[(np.zeros(2), np.zeros(2))] * 3)
    said = mujoco_robot.film("InvertedPendulum-v5", log, RATE, str(tmp_path / "robot.mp4"))
    assert said == f"wrote {tmp_path / 'robot.mp4'}" or said.startswith("no video: ")
    assert (tmp_path / "robot.mp4").exists() or "no video" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "1"], "error: no connection to 127.0.0.1 port 1"),
        (["--env", "No-v5"], "error: No-v5 cannot be made"),
    ],
)
def test_what_stands_in_the_way_is_said_in_a_sentence(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        mujoco_robot.main(["--seconds", "0.1", *words])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(said)


class Message(SimpleNamespace):
    pass


def joint_state(age_s=0.0, **joints):
    """Positions and velocities by joint; the stub's clock is the machine's."""
    sec, nanosec = divmod(time.monotonic_ns() - round(1e9 * age_s), 10**9)
    position, velocity = zip(*joints.values(), strict=True)
    header = Message(stamp=Message(sec=sec, nanosec=nanosec))
    return Message(header=header, name=list(joints), position=list(position), velocity=list(velocity))


def kinds():
    point = lambda: Message(time_from_start=Message(nanosec=0))  # noqa: E731
    names = ("JointState", "Float64MultiArray", "JointTrajectory")
    return dict.fromkeys(names, Message) | {"JointTrajectoryPoint": point}


class FakeNode:
    """What of rclpy's node is used."""

    def __init__(self):
        self.sent, self.errors = [], []

    def create_publisher(self, kind, topic, depth):
        return SimpleNamespace(publish=self.sent.append)

    def create_subscription(self, kind, topic, callback, depth):
        self.receive = callback

    def create_timer(self, period_s, callback):
        self.period_s, self.tick = period_s, callback

    def get_clock(self):
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=time.monotonic_ns()))

    def get_logger(self):
        return SimpleNamespace(error=self.errors.append)


@pytest.mark.parametrize("trajectory", [False, True])
def test_the_ros_node_sends_what_the_loop_commands(trajectory):
    policy = FakePolicy(balance_manifest(), act=balance)
    with serving(policy) as live, live.client() as client:
        node = FakeNode()
        ros2_node.JointNode(node, kinds(), client, ["x"], trajectory)
        node.tick()
        assert node.sent == []  # nothing before the joints are known
        assert node.period_s == pytest.approx(0.04)
        for _ in range(10):
            node.receive(joint_state(angle=(0.1, 0.3), x=(0.2, 0.4)))
            node.tick()
            time.sleep(node.period_s)
    np.testing.assert_allclose(policy.seen[-1]["state"], [[0.2, 0.1, 0.4, 0.3]], atol=1e-6)
    force = 0.3 * 0.2 + 6 * 0.1 + 0.5 * 0.4 + 1.2 * 0.3
    if trajectory:
        (point,) = node.sent[-1].points
        assert node.sent[-1].joint_names == ["x"]
        assert point.positions == pytest.approx([force], abs=1e-5)
        assert point.time_from_start.nanosec == 40_000_000
    else:
        assert node.sent[-1].data == pytest.approx([force], abs=1e-5)
    for _ in range(20):  # the server has gone
        node.receive(joint_state(angle=(0.1, 0.3), x=(0.2, 0.4)))
        node.tick()
        time.sleep(node.period_s)
    count = len(node.sent)
    node.tick()
    assert len(node.sent) == count
    assert node.errors == ["no actions for three periods; stopped, restart the node to go on"]


def test_a_stop_of_the_ros_node_brakes_within_the_limits_and_lasts():
    limits = Limits((-30.0,), (30.0,), velocity=(5.0,), acceleration=(10.0,), jerk=(100.0,))
    manifest = dataclasses.replace(balance_manifest(), limits=limits)
    policy = FakePolicy(manifest, act=lambda obs: np.full((1, H, 1), 25.0, np.float32))
    with serving(policy) as live, live.client() as client:
        node = FakeNode()
        ros2_node.JointNode(node, kinds(), client, ["x"], False)
        for tick in range(400):
            if tick < 20:  # then the robot is seen no more
                node.receive(joint_state(angle=(0.0, 0.0), x=(0.0, 0.0)))
            node.tick()
            time.sleep(node.period_s if tick < 30 else 0)
        count = len(node.sent)
        for _ in range(5):  # it is seen again
            node.receive(joint_state(angle=(0.0, 0.0), x=(0.0, 0.0)))
            node.tick()
            time.sleep(node.period_s)
    assert len(node.errors) == 1
    assert count == len(node.sent) < 400
    path = np.array([message.data[0] for message in node.sent])
    assert path[-1] > path[0] + 0.5
    velocity = np.diff(path) * RATE
    assert velocity[-1] == pytest.approx(0, abs=1e-4)
    assert np.abs(np.diff(velocity)).max() * RATE <= 10.0 * (1 + 1e-6)


def test_the_ros_node_puts_together_what_several_publishers_know():
    policy = FakePolicy(balance_manifest(), act=balance)
    with serving(policy) as live, live.client() as client:
        node = FakeNode()
        ros2_node.JointNode(node, kinds(), client, ["x"], False)
        for _ in range(3):
            node.receive(joint_state(gripper=(9.0, 9.0), x=(0.2, 0.4)))
            node.tick()
        assert node.sent == []  # the angle is not known yet
        for _ in range(10):
            node.receive(joint_state(angle=(0.1, 0.3)))
            node.receive(joint_state(x=(0.2, 0.4)))
            node.tick()
            time.sleep(node.period_s)
        assert node.errors == []
        np.testing.assert_allclose(policy.seen[-1]["state"], [[0.2, 0.1, 0.4, 0.3]], atol=1e-6)
        for _ in range(5):  # one of them has gone
            node.receive(joint_state(x=(0.2, 0.4)))
            node.tick()
            time.sleep(node.period_s)
        assert len(node.errors) == 1


def test_the_ros_node_acts_on_no_message_that_was_long_on_its_way():
    policy = FakePolicy(balance_manifest(), act=balance)
    with serving(policy) as live, live.client() as client:
        node, asked = FakeNode(), len(policy.seen)
        ros2_node.JointNode(node, kinds(), client, ["x"], False)
        for _ in range(5):
            node.receive(joint_state(age_s=1.0, angle=(0.1, 0.3), x=(0.2, 0.4)))
            node.tick()
            time.sleep(node.period_s)
        unstamped = joint_state(angle=(0.1, 0.3), x=(0.2, 0.4))
        unstamped.header.stamp = Message(sec=0, nanosec=0)
        assert len(node.errors) == 1
        assert len(policy.seen) == asked
        node = FakeNode()
        ros2_node.JointNode(node, kinds(), client, ["x"], False)
        for _ in range(5):
            node.receive(unstamped)
            node.tick()
            time.sleep(node.period_s)
        assert len(policy.seen) > asked


def test_the_ros_node_refuses_a_policy_without_names():
    manifest = balance_manifest()
    (port,) = manifest.inputs
    policy = FakePolicy(dataclasses.replace(manifest, inputs=(dataclasses.replace(port, names=None),)), act=balance)
    with serving(policy) as live, live.client() as client, pytest.raises(BundleError, match="export it with obs_names"):
        ros2_node.JointNode(FakeNode(), kinds(), client, ["x"], False)


def test_without_ros_the_node_says_so():
    with pytest.raises(SystemExit, match="is missing: source ROS 2"):
        ros2_node.main(["--joints", "x"])
