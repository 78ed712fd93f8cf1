"""`code_execution`: Python in a sandbox (docs/decisions/sandbox.md).

family.py is the tool; sandbox.py the promise behind it; forks.py keeps that promise, with what layout.py lets the sandbox see,
cgroup.py's bound on memory and seccomp.py's on system calls; inside/ is what runs in there.
"""
