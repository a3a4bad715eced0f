"""The supervisor's decisions, as pure functions of events and their times: an event returns the actions that follow.

lifecycle.py  the entry: events in, actions out; front-ends, the drain      actions.py   the actions
engines.py    the messages and the ends of engines                          state.py     the data of all decisions
changes.py    loads and rollbacks; change.py is one of them                 switch.py    the order of steps in a change
leaving.py    the end of a version                                          versions.py  models and their versions
seat.py       the place of an engine and its successors                     parts.py     a front-end, an engine
"""
