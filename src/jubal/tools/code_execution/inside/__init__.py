"""What runs inside the sandbox: standard library only, nothing of the rest of Jubal, no secret.

The zygote (zygote.py) is one warm interpreter. It forks a supervisor for each session (supervisor.py), which builds the
session's own namespaces and forks the interpreter that runs the model's code (runner.py).
"""
