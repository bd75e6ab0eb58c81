"""Build script of the optional extension; everything else is in pyproject.toml."""

from setuptools import setup

setup()
