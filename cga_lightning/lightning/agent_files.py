"""Checkpoints: `X.ckpt` is the consensus, `X.ckpt.agents/00003.pt` what agent 3 needs to go on from there.

A node that does not see the files of agent 0, since its disk is its own, keeps the consensus beside its agents.

Both carry the same mark. A save writes all shards beside the old ones, then the consensus, then puts the shards in
place: whenever it is cut off, there is a complete set that belongs to the consensus file.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import fsspec
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from cga_lightning.core.agent import Agent
from cga_lightning.core.loss_scaling import scaler_of
from cga_lightning.lightning.loader_states import LoaderStates
from cga_lightning.lightning.peers import Peers
from cga_lightning.passes.random_state import RandomState
from cga_lightning.passes.residents import Resident

if TYPE_CHECKING:
    from pytorch_lightning.plugins import CheckpointIO

    from cga_lightning.lightning.agent_strategy import AgentStrategy

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
    if mark["agents"] is None:
        return {}
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


def of_equal_agents(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint of agents before their first step, who have no files: each goes on from the model in it."""
    return {**checkpoint, KEY: {"agents": None}}


class AgentFiles:
    """Saves the agents of this process beside the consensus, and lets them go on from there.

    Args:
        strategy: whose module, optimizers and schedulers the agents use.
        peers: the processes of the run.

    Attributes:
        loaders: where the train loaders are in their data.
        own_disk: whether this process is the first of a node that does not see the files of agent 0, so that it keeps
            the consensus too; as the last save has found.
    """

    def __init__(self, strategy: AgentStrategy, peers: Peers) -> None:
        self.loaders = LoaderStates(strategy)
        self.own_disk = False
        self._strategy = strategy
        self._peers = peers
        self._loaded: dict[int, dict[str, Any]] = {}
        self._at_data = False  # whether the next train data are those to go on with
        self._rewound: RandomState | None = None
        self._unsettled: tuple[str, list[int]] | None = None

    def save(
        self, checkpoint: Mapping[str, Any], to: Any, agents: int, residents: Iterable[Resident], **how: Any
    ) -> None:
        """The consensus as `checkpoint`, and one shard per agent. A collective.

        Args:
            checkpoint: what Lightning saves.
            to: the path; that of agent 0 counts.
            agents: the number N of agents of the run.
            residents: those of this process, each swapped in when it is its turn.
            how: further options of the `CheckpointIO`.
        """
        self.settle()
        io, ranks = self._strategy.checkpoint_io, []
        loader_states = self.loaders.of_agents()
        path, identifier = self._strategy.broadcast((os.fspath(to), uuid.uuid4().hex))
        mark = {"agents": agents, "id": identifier}
        for resident, loaders in zip(residents, loader_states, strict=True):
            ranks.append(resident.agent.rank)
            write_shard(io, path, resident.agent.rank, self._shard(resident.agent) | {"loaders": loaders}, mark)
        self._strategy.barrier("shards")
        self.own_disk = self._strategy.is_first_of_node and not _exists(_new(shard_path(path, 0)))
        if self._strategy.is_global_zero or self.own_disk:
            io.save_checkpoint({**checkpoint, KEY: mark}, path, **how)
        self._unsettled = path, ranks
        if not _writes_later(io):
            self.settle()

    def settle(self, removed: Any = None) -> None:
        """Complete the last save, for which an `AsyncCheckpointIO` may still write. A collective.

        Until then its shards lie beside those of an earlier save.

        Args:
            removed: only a save to this path; any if None.
        """
        if self._unsettled is None or removed is not None and os.fspath(removed) != self._unsettled[0]:
            return
        (path, ranks), self._unsettled = self._unsettled, None
        if _writes_later(self._strategy.checkpoint_io):
            self._strategy.checkpoint_io.teardown()  # waits, and can be used again
        self._strategy.barrier("consensus")
        put_in_place(path, ranks)

    def load(self, path: str, contents: Mapping[str, Any], agents: int, ranks: Iterable[int], **options: Any) -> None:
        """The shards of the agents of this process, which `restore` uses once all is set up. A collective.

        Raises:
            CheckpointError: on every process, when one of them cannot go on.
        """
        problem = None
        try:
            shards = read_shards(self._strategy.checkpoint_io, path, contents, agents, ranks, **options)
            self._loaded = shards or self._loaded  # which still wait where a tuner goes back to before the first step
        except CheckpointError as error:
            problem = str(error)
        problems = [found for found in self._peers.gather(problem) if found is not None]
        if problems:  # on every process, or the others would report that this one has left
            raise CheckpointError(problems[0])

    def forget(self) -> None:
        """A fit begins, of which nothing is loaded yet."""
        self._loaded, self._at_data = {}, False
        self.loaders.forget()

    def restore_with_data(self) -> None:
        """All is set up: what was loaded is to be restored with the next train data."""
        self._at_data = True

    @property
    def due(self) -> bool:
        """Whether there are shards to restore now."""
        return bool(self._loaded) and self._at_data

    def restore(self, residents: Iterable[Resident]) -> None:
        """Let the agents of this process, each swapped in when it is its turn, go on from the shards.

        Right before the first batches are drawn: the order of the data depends on the random streams.
        """
        first = next(iter(self._loaded.values()))
        self._rewound = RandomState(**first["random"]) if self.loaders.batches_done else None
        self.loaders.forget()
        for resident in residents:
            shard = self._loaded[resident.agent.rank]
            self._restore_module(shard)
            resident.agent.load_state_dict(_moved(shard["algorithm"], resident.agent.params.device))
            self.loaders.load(resident.agent.rank, shard.get("loaders", []))
        self._loaded, self._at_data = {}, False

    def rewind(self) -> None:
        """Amid an epoch its iterators were there already: what making them has drawn now has not been drawn."""
        self.loaders.rewind()
        if self._rewound is not None:
            self._rewound.restore()
            self._rewound = None

    # --- of the agent that is swapped in

    def _shard(self, agent: Agent) -> dict[str, Any]:
        strategy, scaler = self._strategy, scaler_of(self._strategy.precision_plugin)
        return {
            "state_dict": strategy.module.state_dict(),
            "optimizer_states": [strategy.optimizer_state(optimizer) for optimizer in strategy.optimizers],
            "lr_schedulers": [config.scheduler.state_dict() for config in strategy.lr_scheduler_configs],
            "scaler": None if scaler is None else scaler.state_dict(),
            "algorithm": agent.state_dict(),
            "random": RandomState.capture()._asdict(),
        }

    def _restore_module(self, shard: Mapping[str, Any]) -> None:
        strategy, scaler = self._strategy, scaler_of(self._strategy.precision_plugin)
        strategy.module.load_state_dict(shard["state_dict"], strict=strategy.module.strict_loading)
        for optimizer, state in zip(strategy.optimizers, shard["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
        for config, state in zip(strategy.lr_scheduler_configs, shard["lr_schedulers"], strict=True):
            config.scheduler.load_state_dict(state)
        if scaler is not None and shard["scaler"] is not None:
            scaler.load_state_dict(shard["scaler"])
        RandomState(**shard["random"]).restore()


def _exists(path: str) -> bool:
    files, inside = fsspec.core.url_to_fs(path)
    return bool(files.exists(inside))


def _writes_later(io: CheckpointIO) -> bool:
    """Whether `io` returns before it has written, as AsyncCheckpointIO does."""
    return "AsyncCheckpointIO" in {kind.__name__ for kind in type(io).__mro__}


def _moved(saved: dict[str, Any], device: torch.device) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), saved)
