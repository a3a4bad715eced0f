"""The engines of the supervisor as processes; `service.supervisor.lifecycle` decides about them.

pool.py       does what is wanted of engines      serving.py   what the supervisor holds of one
checking.py   known images before a switch        canary.py    the same through one engine, verdict.py judged
room.py       whether there is memory             memory.py    what engines take of it
watching.py   weights that are loaded when they change (watch.py)
"""
