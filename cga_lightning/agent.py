"""`Agent`, where plain loops import it from."""

from cga_lightning.core.agent import Agent

__all__ = ["Agent"]
