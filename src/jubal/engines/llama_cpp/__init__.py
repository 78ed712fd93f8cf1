"""The embedded engine: llama.cpp's own server in a child process, spoken to over a private UNIX socket.

child.py      what runs in the child: xllamacpp, and ways to die with the parent
scheduler.py  decisions: when to look, when to kill, when to start again; pure
process.py    one task that owns the child and does what scheduler.py says
launch.py     the effects: spawning, signals, the socket's folder, /health
engine.py     the Engine: Generation in, events out
"""
