"""The engines of the supervisor: which there are, who takes the place of the dead, and how a model is replaced.

seat.py    one engine's life: start, ready, introduced to front-ends, dead, started again
pool.py    all of them, by model and device; what the service's state follows from
board.py   which version of a model answers, one word of memory that every front-end reads
"""
