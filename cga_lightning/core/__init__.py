"""What a step is made of, without Lightning: agents, the contract of an algorithm, messages, the driver of a step."""

from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Exchange, LazyMessages, Messages, Step, gossip
from cga_lightning.core.communication import CommunicationError, LocalCommunicator, ProcessGroupCommunicator
from cga_lightning.core.driver import OwnGradient, StepDriver
from cga_lightning.core.layout import FlatLayout

__all__ = [
    "Agent",
    "Algorithm",
    "CommunicationError",
    "Exchange",
    "FlatLayout",
    "LazyMessages",
    "LocalCommunicator",
    "Messages",
    "OwnGradient",
    "ProcessGroupCommunicator",
    "Step",
    "StepDriver",
    "gossip",
]
