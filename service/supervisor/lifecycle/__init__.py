"""What the supervisor decides, pure: it is told what happens and when, and answers what is to be done.

lifecycle.py  the door: events in, actions out; front-ends, the drain       actions.py   what is to be done
engines.py    what engines say, and what their ends mean                    state.py     all that decisions know
changes.py    loads and rollbacks, change.py one of them                    switch.py    what comes before what in one
leaving.py    how a version ends                                            versions.py  models and their versions
seat.py       where an engine lives                                         parts.py     a front-end, an engine
"""
