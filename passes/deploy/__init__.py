"""Deployment: what makes a finished model small and portable."""

from passes.deploy.shorten_names import ShortenNames

__all__ = ["ShortenNames"]
