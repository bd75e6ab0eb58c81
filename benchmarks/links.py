"""A step over slow links: agents on emulated hosts, side by side with DDP in one run.

Every host is a network namespace with a TUN device; this process carries the packets between them, each after the
delay. Needs Linux and root. A forward pass sleeps, so that few cores serve many hosts. The bound is what no order of
sends and passes can hide: the passes, and one way of what has to wait for them.

    python -m benchmarks.links --rtt 20 100
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import heapq
import json
import multiprocessing
import os
import select
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cga_lightning import DecentralizedStrategy

TUNSETIFF, TUN, NO_PI, NEWNET = 0x400454CA, 0x1, 0x1000, 0x40000000
MTU = 30000  # few packets, since this process carries each of them
WARMUP = 10


class Paced(pl.LightningModule):
    """60010 parameters, and a forward pass of `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 800), nn.ReLU(), nn.Linear(800, 10))
        self.seconds = seconds

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """A batch of inputs and classes."""
        time.sleep(self.seconds)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Stopwatch(pl.Callback):
    """The moments at which steps have ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """A step is over."""
        self.moments.append(time.perf_counter())

    @property
    def median(self) -> float:
        """Milliseconds of a step."""
        late = self.moments[WARMUP:]
        lengths = sorted(b - a for a, b in zip(late, late[1:], strict=False))
        return 1e3 * lengths[len(lengths) // 2]


def sh(command: str) -> None:
    """Run it; raises if it fails."""
    subprocess.run(command.split(), check=True, stderr=subprocess.DEVNULL)


@contextmanager
def hosts(count: int, delay: float) -> Iterator[list[str]]:
    """Namespaces with the addresses 10.78.0.1, 10.78.0.2, ...; packets take `delay` seconds from one to another."""
    names = [f"links{os.getpid()}h{host}" for host in range(count)]
    devices = []
    try:
        for host, name in enumerate(names):
            device = os.open("/dev/net/tun", os.O_RDWR)
            devices.append(device)
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", f"lk{host}".encode(), TUN | NO_PI))
            sh(f"ip netns add {name}")
            sh(f"ip link set lk{host} netns {name}")
            sh(f"ip -n {name} addr add 10.78.0.{host + 1}/24 dev lk{host}")
            for part in (f"lk{host} mtu {MTU} txqueuelen 2000", f"lk{host}", "lo"):
                sh(f"ip -n {name} link set dev {part} {'' if 'mtu' in part else 'up'}")
        carrier = multiprocessing.get_context("fork").Process(target=carry, args=(devices, delay), daemon=True)
        carrier.start()
        yield names
        carrier.terminate()
        carrier.join()
    finally:
        for device in devices:
            os.close(device)
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def carry(devices: list[int], delay: float) -> None:
    """Carry packets for ever, each after the delay, in their order."""
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, device, packet = heapq.heappop(waiting)
            os.write(device, packet)
        ready, _, _ = select.select(devices, [], [], max(0.0, waiting[0][0] - now) if waiting else None)
        for device in ready:
            packet = os.read(device, 65536)
            receiver = packet[19] - 1
            if packet[0] >> 4 == 4 and 0 <= receiver < len(devices):
                number += 1
                heapq.heappush(waiting, (time.monotonic() + delay, number, devices[receiver], packet))


def train(host: int, name: str, algorithm: str, args: argparse.Namespace, to: Path) -> None:
    """One agent, in its namespace; writes the milliseconds of a step."""
    with open(f"/run/netns/{name}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    os.environ |= {"MASTER_ADDR": "10.78.0.1", "MASTER_PORT": "29500", "NODE_RANK": str(host)}
    os.environ["GLOO_SOCKET_IFNAME"] = f"lk{host}"
    torch.set_num_threads(1)
    strategy: Any = pl.strategies.DDPStrategy(process_group_backend="gloo")
    if algorithm != "ddp":
        strategy = DecentralizedStrategy(algorithm, args.topology)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "use_distributed_sampler": False}
    stopwatch, inputs = Stopwatch(), torch.randn(16 * (WARMUP + args.steps), 64)
    loader = DataLoader(TensorDataset(inputs, inputs[:, :10].argmax(1)), batch_size=16)
    trainer = pl.Trainer(
        strategy=strategy, devices=1, num_nodes=args.agents, max_epochs=1, callbacks=stopwatch, **quiet
    )
    trainer.fit(Paced(args.seconds), loader)
    to.write_text(json.dumps(stopwatch.median))


def measure(algorithm: str, rtt: float, args: argparse.Namespace) -> float:
    """The median over agents, ms."""
    context = multiprocessing.get_context("fork")
    with hosts(args.agents, rtt / 2e3) as names, tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(host) for host in range(args.agents)]
        agents = [
            context.Process(target=train, args=(host, name, algorithm, args, file))
            for host, (name, file) in enumerate(zip(names, files, strict=True))
        ]
        for agent in agents:
            agent.start()
        for agent in agents:
            agent.join()
        found = sorted(json.loads(file.read_text()) for file in files)
    return float(found[len(found) // 2])


def bound(algorithm: str, rtt: float, seconds: float) -> float:
    """Milliseconds, on a ring: models travel during the own pass, cross-gradients after the passes."""
    way, one_pass = rtt / 2, 1e3 * seconds
    if algorithm == "dpsgd":
        return max(way, one_pass)
    return max(way, one_pass) + 2 * one_pass + way


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--topology", default="ring")
    parser.add_argument("--rtt", type=float, nargs="+", default=[0, 20, 100], help="round trips, ms")
    parser.add_argument("--seconds", type=float, default=0.03, help="of a forward pass")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--algorithms", nargs="+", default=["dpsgd", "cga", "ddp"])
    args = parser.parse_args()
    print("| algorithm | RTT, ms | step, ms | bound, ms | ratio |\n|---|---|---|---|---|")
    for rtt in args.rtt:
        for algorithm in args.algorithms:
            found = measure(algorithm, rtt, args)
            least = bound(algorithm, rtt, args.seconds) if algorithm != "ddp" else float("nan")
            print(f"| {algorithm} | {rtt:g} | {found:.0f} | {least:.0f} | {found / least:.2f} |", flush=True)


if __name__ == "__main__":
    main()
