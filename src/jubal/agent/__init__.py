"""Turns of an engine into one answer."""
