"""Dialects: one file each, from a body to a Generation, from events to frames, from errors to bodies."""
