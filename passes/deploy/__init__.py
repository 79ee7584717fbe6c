"""Deployment: what makes a finished model small and portable."""

from passes.deploy.name_nodes import NameNodes
from passes.deploy.shorten_names import ShortenNames

__all__ = ["NameNodes", "ShortenNames"]
