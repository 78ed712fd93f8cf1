"""The management acts: what the command line and the management API can do, as plain functions of a connection and an actor.

Each says who may do it, does it, and writes it down in the audit log, in one transaction.
"""
