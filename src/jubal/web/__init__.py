"""Fetching from addresses that strangers name, without letting them reach what only this machine can reach."""
