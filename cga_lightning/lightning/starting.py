"""How the processes of a run find each other: by which network, in which attempt, and for how long they try."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Timer
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from cga_lightning.names import listed

_log = logging.getLogger(__name__)

ADVICE = (
    "Every agent must be able to reach every other. Set MASTER_ADDR, MASTER_PORT, NODE_RANK and Trainer(num_nodes=...) "
    "alike on all nodes, with another NODE_RANK on each; and GLOO_SOCKET_IFNAME to the network interface by which the "
    "nodes reach each other, such as eth0."
)
CONNECTING = timedelta(seconds=60)
"""How long processes that are all there may take to connect to each other."""
_SIOCGIFADDR = 0x8915  # of Linux: the address of a network interface


def run_identifier() -> str:
    """What keeps this run, and this attempt of it, apart from others at the same address and port.

    CGA_RUN_ID where it is set, the same on all nodes; else what torchrun and SLURM call the run.
    """
    names = ("CGA_RUN_ID", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
    run = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return f"cga_lightning/{run}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def connect(backend: str, rank: int, agents: int, timeout: timedelta, **options: Any) -> None:
    """Make the default process group, at MASTER_ADDR and MASTER_PORT.

    Args:
        backend: "gloo" or "nccl".
        rank: of this process.
        agents: their number N.
        timeout: how long to wait until all have started.
        options: of `torch.distributed.init_process_group`.

    Raises:
        RuntimeError: names who is not there.
    """
    with _deadline(timeout + CONNECTING, f"Agent {rank} has found no connection to agent 0"):
        store, _, _ = next(rendezvous("env://", rank, agents, timeout=timeout))
    store = PrefixStore(run_identifier(), store)
    _wait_for_all(store, rank, agents, timeout)
    with _deadline(CONNECTING, f"Agent {rank} has not connected to all {agents - 1} others, which have started,"):
        dist.init_process_group(backend, store=store, rank=rank, world_size=agents, timeout=timeout, **options)


def _wait_for_all(store: Any, rank: int, agents: int, timeout: timedelta) -> None:
    if store.add(f"started/{rank}", 1) > 1:
        raise RuntimeError(f"Two processes of this run are agent {rank}. {ADVICE}")
    keys = [f"started/{other}" for other in range(agents)]
    try:
        store.wait(keys, timeout)
    except RuntimeError as error:
        missing = [other for other, key in enumerate(keys) if not store.check([key])]
        raise RuntimeError(
            f"Agent {rank} has waited {timeout.total_seconds():g} s for agent {listed(missing)} of "
            f"{agents} to start. {ADVICE}"
        ) from error


@contextmanager
def _deadline(limit: timedelta, what: str) -> Iterator[None]:
    """End the process if the block takes longer: it may be in a wait of torch that nothing else ends."""

    def end() -> None:
        _log.error(f"{what} within {limit.total_seconds():g} s. {ADVICE}")
        logging.shutdown()
        os._exit(1)

    timer = Timer(limit.total_seconds(), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def interface_towards(host: str) -> str | None:
    """The network interface whose address this machine has on its way to `host`; None if there is none, or no way."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            address = probe.getsockname()[0]
    except OSError:
        return None
    return next((name for _, name in socket.if_nameindex() if _address_of(name) == address), None)


def _address_of(interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)[20:24])
    except OSError:  # it has none
        return None


def choose_interface(host: str) -> None:
    """Let gloo use the interface towards `host`, unless the user has chosen one: by default it goes by the host name.

    Which on many systems is that of 127.0.1.1, where no other node reaches this one.
    """
    interface = interface_towards(host)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
