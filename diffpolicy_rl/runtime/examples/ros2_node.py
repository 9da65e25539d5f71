"""A ROS 2 node that drives a robot's joints through a policy server.

``ros2 run``-able as it is: ``python -m diffpolicy_rl.runtime.examples.ros2_node --joints hip knee ankle``. It reads
``sensor_msgs/JointState`` and publishes to a ros2_control controller: ``trajectory_msgs/JointTrajectory`` for a joint
trajectory controller, or ``std_msgs/Float64MultiArray`` for a forward command controller. Three rates work together:
the policy's chunks at some Hz, this node at ``control.rate_hz`` (10 to 50 Hz), and the controller manager at 100 to
1000 Hz, which slews to each reference. The robot's own limits stay on: the safety filter here is no certified function.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffpolicy_rl.runtime.client import PolicyClient
from diffpolicy_rl.runtime.errors import BundleError
from diffpolicy_rl.runtime.examples.loop import Command, ControlLoop
from diffpolicy_rl.runtime.watchdog import State

_VELOCITY = ".velocity"


class JointNode:
    """Topics in, topics out; the control loop in between.

    The policy's input goes by the names in its manifest: ``knee`` is a position, ``knee.velocity`` a velocity. They may
    come from several publishers; the observation is as old as the oldest of its entries.

    Args:
        node: an rclpy node.
        messages: the message classes by name.
        client: connected to the server.
        joints: names of the joints that the actions (D,) command, in their order.
        trajectory: publish JointTrajectory instead of Float64MultiArray.

    Raises:
        BundleError: for a policy whose input is not one vector of named entries.
    """

    def __init__(
        self, node: Any, messages: Mapping[str, Any], client: PolicyClient, joints: Sequence[str], trajectory: bool
    ) -> None:
        control = client.control
        self._node, self._messages, self._joints = node, messages, list(joints)
        inputs = client.metadata["inputs"]
        if len(inputs) != 1 or inputs[0]["names"] is None:
            raise BundleError(
                "the node needs a policy with one input whose entries are named: export it with obs_names"
            )
        self._port = inputs[0]
        self._known: dict[str, tuple[float, float]] = {}  # the value, and when it was taken
        self._period_s = 1 / control.rate_hz
        self._loop = ControlLoop(client, client.limits, control.rate_hz)
        self._begun = self._stopped = False
        self._message = self._trajectory if trajectory else self._values
        kind = messages["JointTrajectory" if trajectory else "Float64MultiArray"]
        self._out = node.create_publisher(kind, "commands", 1)
        node.create_subscription(messages["JointState"], "joint_states", self._observe, 1)
        node.create_timer(self._period_s, self._tick)

    def _observe(self, message: Any) -> None:
        taken_s = self._taken_s(message.header.stamp)
        for name, value in zip(message.name, message.position, strict=False):
            self._known[name] = value, taken_s
        for name, value in zip(message.name, message.velocity, strict=False):
            self._known[name + _VELOCITY] = value, taken_s
        if not self._known.keys() >= {*self._joints, *self._port["names"]}:
            return
        if not self._begun:  # commands start from where the joints are
            self._loop.reset(np.array([self._known[joint][0] for joint in self._joints]))
            self._begun = True
        values, times = zip(*(self._known[name] for name in self._port["names"]), strict=True)
        self._loop.observe({self._port["name"]: np.array(values, self._port["dtype"])}, min(times))

    def _taken_s(self, stamp: Any) -> float:
        """A message's time on the clock of the watchdog; now, if the publisher gave none."""
        now_s, stamp_ns = time.monotonic(), stamp.sec * 10**9 + stamp.nanosec
        return now_s - 1e-9 * (self._node.get_clock().now().nanoseconds - stamp_ns) if stamp_ns else now_s

    def _tick(self) -> None:
        if not self._begun or (self._stopped and self._loop.still):
            return
        command = self._loop.brake() if self._stopped else self._loop.tick()
        if command.state is State.STOP and not self._stopped:  # it lasts: a person looks before the robot moves again
            self._stopped = True
            self._node.get_logger().error("no actions for three periods; stopped, restart the node to go on")
        self._out.publish(self._message(command))

    def _values(self, command: Command) -> Any:
        message = self._messages["Float64MultiArray"]()
        message.data = command.filtered.action.tolist()
        return message

    def _trajectory(self, command: Command) -> Any:
        point = self._messages["JointTrajectoryPoint"]()
        point.positions = command.filtered.action.tolist()
        point.time_from_start.nanosec = round(1e9 * self._period_s)
        message = self._messages["JointTrajectory"]()
        message.joint_names, message.points = self._joints, [point]
        return message


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--joints", nargs="+", required=True, help="joints that the actions command, in their order")
    parser.add_argument("--trajectory", action="store_true", help="publish JointTrajectory")
    given = parser.parse_args(argv)
    try:
        import rclpy  # pyright: ignore[reportMissingImports]
        from sensor_msgs.msg import JointState  # pyright: ignore[reportMissingImports]
        from std_msgs.msg import Float64MultiArray  # pyright: ignore[reportMissingImports]
        from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        sentence = f"{error.name} is missing: source ROS 2's setup.bash, and use the Python it was built for"
        raise SystemExit(sentence) from None
    messages = {kind.__name__: kind for kind in (JointState, Float64MultiArray, JointTrajectory, JointTrajectoryPoint)}
    rclpy.init()
    node = rclpy.create_node("diffpolicy_rl")
    token = os.environ.get("DIFFPOLICY_RL_TOKEN")
    with PolicyClient(given.host, given.port, token=token) as client:
        try:
            JointNode(node, messages, client, given.joints, given.trajectory)
        except BundleError as error:
            raise SystemExit(str(error)) from None
        rclpy.spin(node)


if __name__ == "__main__":
    main()
