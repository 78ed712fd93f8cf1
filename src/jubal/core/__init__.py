"""What is asked, what happens while it is answered, and what it cost.

Standard library only: no I/O, no clock, no names of any wire format. Every other package of Jubal may import this one; this
one imports nothing of Jubal.
"""
