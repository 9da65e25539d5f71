"""Our tasks on CPU threads: ``mujoco.batch.Batch`` steps all rows of one model at once."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules come without types.)

from typing import ClassVar, Unpack

import mujoco
import numpy as np
import torch
from gymnasium.spaces import Box
from mujoco.batch import Batch, SimulationError
from numpy.typing import NDArray
from torch import Tensor

from diffpolicy_rl.envs.base import ChunkedVecEnv, ChunkResult, EnvOptions, PhysicsError
from diffpolicy_rl.envs.rendering import open_renderer
from diffpolicy_rl.envs.streams import uniform
from diffpolicy_rl.envs.tasks.base import Physics, Task
from diffpolicy_rl.errors import UserError, did_you_mean, require_positive
from diffpolicy_rl.types import State

_DIVERGED = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)


class BatchEnv(ChunkedVecEnv):
    """One of our tasks, simulated in float64; states and observations equal Gymnasium's bit for bit.

    The result does not depend on the number of threads.

    Attributes:
        task: the task definition.
    """

    backend: ClassVar[str] = "batch"

    def __init__(
        self,
        spec_id: str,
        task: Task,
        *,
        threads: int | None = None,
        **options: Unpack[EnvOptions],
    ) -> None:
        """Allocate the simulations.

        Args:
            spec_id: the id that ``make_env`` takes.
            task: the task definition.
            threads: physics threads; as many as torch uses if not given.
            **options: see ``EnvOptions``.

        Raises:
            UserError: if a count is below 1.
        """
        box = Box(*task.model.actuator_ctrlrange.T.astype(np.float32))
        super().__init__(spec_id, box, task.obs_dim, task.max_episode_steps, **options)
        threads = torch.get_num_threads() if threads is None else threads
        require_positive(threads=threads, frame_skip=task.frame_skip)
        self.task = task
        self.metadata = self.metadata | {"render_fps": round(1 / task.dt)}  # Gymnasium's name for the rate of steps
        self._batch = Batch(task.model, self.num_envs, threads)
        self._control = self._view("ctrl")
        # MuJoCo only shows the places it computed last; a copy is needed that a loaded state can replace.
        self._tracked = self._batch.bind("xpos")[:, task.tracked_bodies]
        places = torch.zeros(self._tracked.shape, dtype=torch.float64)
        self._physics = Physics(self._view("qpos"), self._view("qvel"), places)
        self._path = Physics(*(torch.stack([x] * (self.chunk + 1), dim=1) for x in self._physics))
        self._renderer: mujoco.Renderer | None = None

    def _view(self, field: str) -> Tensor:
        """A tensor that shares memory with a field of the simulations' state."""
        return torch.from_numpy(self._batch.bind(field))

    def _advance(self, action: Tensor) -> ChunkResult:
        # Rewards and observations are functions of the path alone: one batched call per chunk, not one per step.
        executed, terminated, truncated = self._run_physics(action)
        before, after = (Physics(*(x[:, part] for x in self._path)) for part in (slice(-1), slice(1, None)))
        ran = torch.arange(self.chunk) < executed[:, None]
        rewards = self.task.reward(before, after, action).masked_fill(~ran, 0.0)
        won = self.task.success(after)
        info = {} if won is None else {"success": (won & ran).any(dim=1)}
        costs = self.task.cost(before, after, action)
        costs = None if costs is None else costs.masked_fill(~ran, 0.0)
        first_obs = self._restart(terminated | truncated)
        return ChunkResult(self.task.observe(after), rewards, executed, terminated, truncated, first_obs, costs, info)

    def _run_physics(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Record the path of the chunk; return executed, terminated and truncated, (N,) each."""
        left = self.max_episode_steps - self._elapsed
        executed = torch.zeros_like(left)
        terminated = torch.zeros_like(left, dtype=torch.bool)
        live = ~terminated
        self._record(0)
        for index in range(self.chunk):
            self._control.copy_(self.task.drive(self._physics, action[:, index]))
            self._step(live.numpy())
            self._record(index + 1)
            executed += live
            # A frozen row keeps its state, and with it the verdict on that state.
            terminated = self.task.terminated(self._physics)
            live = ~terminated & (executed < left)
        return executed, terminated, ~terminated & (executed == left)

    def _record(self, index: int) -> None:
        for path, now in zip(self._path, self._physics, strict=True):
            path[:, index] = now

    def _step(self, live: NDArray[np.bool_]) -> None:
        """One env step of the live rows; MuJoCo resets a row that diverges, and only its warning counter tells."""
        try:
            self._batch.step(live, nstep=self.task.frame_skip)
        except SimulationError as error:
            raise PhysicsError(f"{self.spec_id}: {error}; reset these rows") from error
        diverged = self._batch.warning[:, _DIVERGED].any(axis=(1, 2))
        if diverged.any():
            raise PhysicsError(f"{self.spec_id}: the physics of row {diverged.argmax()} diverged; reset it")
        self._track()

    def _track(self) -> None:
        self._physics.xpos.numpy()[:] = self._tracked

    def _restart(self, rows: Tensor) -> Tensor:
        if rows.any():
            index = rows.nonzero()[:, 0]
            count = self.task.model.nq + self.task.model.nv
            start = self.task.initial_state(uniform(self._seed, index, self._episode[index], count))
            self._write(rows, {"qpos": start.qpos, "qvel": start.qvel})
        return self.task.observe(self._physics)

    def _write(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        """Set fields of some rows, and all others to the model's defaults, the solver's warm start included."""
        self._batch.reset(rows.numpy(), stage=mujoco.mjtStage.mjSTAGE_NONE)
        for name, value in values.items():
            self._view(name)[rows] = value.to("cpu", torch.float64)
        if self._tracked.size:
            self._batch.forward(rows.numpy(), stage=mujoco.mjtStage.mjSTAGE_POS)
            self._track()

    def state(self) -> dict[str, Tensor]:
        """Physics state of every row: copies of ``time`` (N,) in s, ``qpos`` (N, nq) and ``qvel`` (N, nv)."""
        return {name: self._view(name).to(self.device, copy=True) for name in ("time", "qpos", "qvel")}

    def set_state(self, *, mask: Tensor | None = None, **fields: Tensor) -> Tensor:
        """Put the physics into a given state, within the running episodes; the history becomes this state, repeated.

        Args:
            mask: (N,) bool, the rows to set; all if not given.
            **fields: any of the names in ``state()``, one line for each row that is set.

        Returns:
            The observation, as ``reset`` returns it.

        Raises:
            UserError: if there is no such field, or its shape does not fit.
        """
        rows = self._reset_rows(mask)
        known = self.state()
        for name, value in fields.items():
            if name not in known:
                raise UserError(f"{self.spec_id}: there is no state field {name!r}; {did_you_mean(name, known)}")
            shape = (int(rows.sum()), *known[name].shape[1:])
            if tuple(value.shape) != shape:
                raise UserError(f"{self.spec_id}: {name} has shape {tuple(value.shape)}, but {shape} is needed")
        kept = {name: value[rows] for name, value in known.items()}
        self._write(rows, kept | fields)
        now = self.task.observe(self._physics).to(self.dtype)[:, None]
        self._window = torch.where(rows[:, None, None], now, self._window)
        self._started = True
        return self.observation()

    def state_dict(self) -> State:
        """As the base class, plus MuJoCo's full integration state (N, nstate), warm start included, and what lags."""
        tracked = {"xpos": self._physics.xpos.clone()} if self._tracked.size else {}
        return super().state_dict() | {"integration_state": torch.from_numpy(self._batch.state).clone()} | tracked

    def load_state_dict(self, state: State) -> None:
        """Continue bit for bit where ``state_dict`` was taken."""
        super().load_state_dict(state)
        self._batch.state[:] = state["integration_state"].numpy()
        if self._tracked.size:
            self._physics.xpos.copy_(state["xpos"])

    def render(self) -> NDArray[np.uint8]:
        """RGB frame (480, 480, 3) of the first row, from the camera "track" if the model has it.

        Raises:
            UserError: if there is no OpenGL to render with.
        """
        model = self.task.model
        if self._renderer is None:
            self._renderer = open_renderer(model)
        data = self._batch.get_data(0)
        mujoco.mj_forward(model, data)
        # The id is -1, the free camera, where there is no such name.
        self._renderer.update_scene(data, camera=mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track"))
        return self._renderer.render()

    def close_extras(self) -> None:
        """Release the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
