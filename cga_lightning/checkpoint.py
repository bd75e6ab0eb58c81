"""Checkpoints: `X.ckpt` is the consensus, `X.ckpt.agents/00003.pt` what agent 3 needs to go on from there.

Both carry the same mark. A save writes all shards beside the old ones, then the consensus, then puts the shards in
place: whenever it is cut off, there is a complete set that belongs to the consensus file.
"""

from __future__ import annotations

import os
import uuid
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import fsspec
from torch import Tensor
from torch.utils._pytree import tree_map_only

from cga_lightning._lightning import InTreeOfUse
from cga_lightning.agent import Agent
from cga_lightning.sandbox import RandomState

if TYPE_CHECKING:
    from pytorch_lightning.plugins import CheckpointIO
    from pytorch_lightning.strategies import SingleDeviceStrategy

    class _Base(InTreeOfUse, SingleDeviceStrategy): ...
else:
    _Base = InTreeOfUse

KEY = "cga_lightning"
"""Where a checkpoint and its shards keep their mark: the number of agents, and an identifier of this save."""

Resume = Literal["agents", "consensus"]
Mark = Mapping[str, Any]


class CheckpointError(RuntimeError):
    """A checkpoint from which these agents cannot go on."""


def shard_path(checkpoint: str, rank: int) -> str:
    """The file of agent `rank`; beside the file itself if `checkpoint` is a link to it."""
    if os.path.islink(checkpoint):
        checkpoint = os.path.realpath(checkpoint)
    return f"{checkpoint}.agents/{rank:05d}.pt"


def write_shard(io: CheckpointIO, checkpoint: str, rank: int, shard: Mapping[str, Any], mark: Mark) -> None:
    """Write it beside the one of an earlier save, which stays until `put_in_place`."""
    io.save_checkpoint({**shard, KEY: {**mark, "rank": rank}}, _new(shard_path(checkpoint, rank)))


def put_in_place(checkpoint: str, ranks: Iterable[int]) -> None:
    """The consensus of this save is written: its shards replace the old ones."""
    for rank in ranks:
        path = shard_path(checkpoint, rank)
        files, _ = fsspec.core.url_to_fs(path)
        files.mv(_new(path), path)


def read_shards(
    io: CheckpointIO, checkpoint: str, contents: Mapping[str, Any], agents: int, ranks: Iterable[int], **options: Any
) -> dict[int, dict[str, Any]]:
    """The shards of these ranks that belong to the checkpoint with these contents.

    Raises:
        CheckpointError: when there is none, or it cannot be read, or it is of another save or number of agents.
    """
    mark = contents.get(KEY)
    if mark is None:
        raise CheckpointError(
            f"{checkpoint} holds one model but no agents: it was written by another strategy, after fit, or when a "
            f"process stopped alone. {_ALTERNATIVE}"
        )
    if mark["agents"] != agents:
        raise CheckpointError(
            f"{checkpoint} is of {mark['agents']} agents, but the run has {agents}. Run {mark['agents']} agents. "
            f"{_ALTERNATIVE}"
        )
    return {rank: _read(io, shard_path(checkpoint, rank), {**mark, "rank": rank}, options) for rank in ranks}


def remove_shards(io: CheckpointIO, checkpoint: str) -> None:
    """Delete the folder of shards, if there is one."""
    io.remove_checkpoint(os.path.dirname(shard_path(checkpoint, 0)))


_ALTERNATIVE = 'To start every agent from the model in it, pass resume="consensus" to the strategy.'


def _new(path: str) -> str:
    return f"{path}.new"


def _read(io: CheckpointIO, path: str, mark: Mark, options: Mapping[str, Any]) -> dict[str, Any]:
    problem = "is missing"
    for candidate in (path, _new(path)):
        try:
            shard: dict[str, Any] = io.load_checkpoint(candidate, **options)
        except FileNotFoundError:
            continue
        except Exception as error:  # whatever unpickling a damaged file may raise
            problem = f"cannot be read ({type(error).__name__}: {error})"
            continue
        if isinstance(shard, dict) and shard.get(KEY) == mark:
            return shard
        problem = "belongs to another checkpoint"
    raise CheckpointError(f"The file of agent {mark['rank']}, {path}, {problem}. {_ALTERNATIVE}")


class AgentCheckpoints(_Base):
    """Mixed into a strategy: saves the agents of this process beside the consensus, and lets them go on from there."""

    resume: Resume
    _agents_differ: bool
    _to_restore: dict[int, dict[str, Any]]

    # --- what the two strategies answer differently

    @property
    @abstractmethod
    def agents(self) -> int:
        """The number N of agents of the run."""

    @property
    @abstractmethod
    def local_agents(self) -> Iterable[int]:
        """The ranks of the agents of this process."""

    @property
    def _alone(self) -> bool:
        """Whether an exception has stopped this process, so that the others do not answer."""
        return False

    def _gathered(self, value: Any) -> list[Any]:
        """One value of every process."""
        return [value]

    @abstractmethod
    def _each_agent(self) -> Iterator[Agent]:
        """The agents of this process, each while its tensors, optimizer state and random streams are the live ones."""

    @abstractmethod
    def _restore_agents(self, shards: Mapping[int, Mapping[str, Any]]) -> None:
        """Let every agent of this process go on from its shard."""

    # --- hooks

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """The consensus, and one shard per agent. A collective, except when an exception stopped this process alone."""
        if not self._agents_differ or self._alone or "optimizer_states" not in checkpoint:
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        path, identifier = self.broadcast((os.fspath(filepath), uuid.uuid4().hex))
        mark = {"agents": self.agents, "id": identifier}
        for agent in self._each_agent():
            write_shard(self.checkpoint_io, path, agent.rank, self._shard(agent), mark)
        self.barrier("shards")
        super().save_checkpoint({**checkpoint, KEY: mark}, path, storage_options)
        self.barrier("consensus")
        put_in_place(path, self.local_agents)
        return None

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The consensus; to go on with training also the shards, which `restore_agents` uses once all is set up."""
        contents = super().load_checkpoint(checkpoint_path, weights_only)
        if self._fitting and self.resume == "agents":
            where, whose = (self.checkpoint_io, os.fspath(checkpoint_path), contents), (self.agents, self.local_agents)
            problem = None
            try:
                self._to_restore = read_shards(*where, *whose, weights_only=weights_only)
            except CheckpointError as error:
                problem = str(error)
            problems = [found for found in self._gathered(problem) if found is not None]
            if problems:  # on every process, or the others would report that this one has left
                raise CheckpointError(problems[0])
        return contents

    def remove_checkpoint(self, filepath: Any) -> None:
        """Both."""
        super().remove_checkpoint(filepath)
        if self.is_global_zero:
            remove_shards(self.checkpoint_io, os.fspath(filepath))

    def restore_agents(self) -> None:
        """Right before the first batches are drawn: the order of the data depends on the random streams."""
        shards, self._to_restore = self._to_restore, {}
        if shards:
            self._restore_agents(shards)

    # --- one agent

    @property
    def _fitting(self) -> bool:
        return self.lightning_module is not None and self.lightning_module.trainer.state.fn == "fit"

    def _shard(self, agent: Agent) -> dict[str, Any]:
        assert self.lightning_module is not None
        scaler = getattr(self.precision_plugin, "scaler", None)
        return {
            "state_dict": self.lightning_module.state_dict(),
            "optimizer_states": [self.optimizer_state(optimizer) for optimizer in self.optimizers],
            "lr_schedulers": [config.scheduler.state_dict() for config in self.lr_scheduler_configs],
            "scaler": None if scaler is None else scaler.state_dict(),
            "algorithm": {"state": agent.state, "step": agent.step},
            "random": RandomState.capture()._asdict(),
        }

    def _restore_live(self, shard: Mapping[str, Any]) -> None:
        """All of a shard but what belongs to the `Agent`."""
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(shard["state_dict"], strict=self.lightning_module.strict_loading)
        for optimizer, state in zip(self.optimizers, shard["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
        for config, state in zip(self.lr_scheduler_configs, shard["lr_schedulers"], strict=True):
            config.scheduler.load_state_dict(state)
        scaler = getattr(self.precision_plugin, "scaler", None)
        if scaler is not None and shard["scaler"] is not None:
            scaler.load_state_dict(shard["scaler"])
        RandomState(**shard["random"]).restore()


def restore_algorithm(agent: Agent, shard: Mapping[str, Any]) -> None:
    """What the algorithm keeps for this agent, and its step."""
    device = agent.params.device
    agent.state = tree_map_only(Tensor, lambda tensor: tensor.to(device), shard["algorithm"]["state"])
    agent.step = shard["algorithm"]["step"]
