"""Jubal: a self-hosted Grok API."""

__version__ = "0.1.0"
