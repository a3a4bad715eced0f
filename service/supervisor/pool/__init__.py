"""The supervisor's engines as processes; `service.supervisor.lifecycle` decides about them.

pool.py       carries out the actions on engines       serving.py   the resources of a ready engine
checking.py   known images before a switch             probe.py     known images through one engine
verdict.py    the judgement of their answers           watching.py  weights that change on disk (watch.py)
room.py       the memory that one more engine needs    memory.py    the memory that engines take
"""
