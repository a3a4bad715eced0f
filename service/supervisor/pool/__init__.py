"""The engines of the supervisor: which there are, who takes the place of the dead, and how a model is replaced.

seat.py       one engine's life: start, ready, introduced to front-ends, dead, started again
versions.py   what there is: models, their versions, the seats of each
pool.py       everything below, put together
engines.py    all of it, by model and device       events.py    what engines say, and what their ends mean
switch.py     a change of version, decided purely  changes.py   the same, done: loads and rollbacks
checking.py   known images before a switch        canary.py    the same through one engine, verdict.py judged
leaving.py    how a version ends                   watching.py  weights that are loaded when they change (watch.py)
room.py       whether there is memory              budget.py    what all engines may take
orders.py     what clients order                   shadowing.py the model that answers nobody
"""
