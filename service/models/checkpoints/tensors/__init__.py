"""Files of tensors, as training scripts save them: their kind, their values, their network.

recognise.py     a file's kind by its bytes; advice for a kind that cannot be served
files.py         the values in a file, without running code from it
search.py        the networks among the values, whatever wraps and prefixes them
shapes.py        a network's configuration, from the shapes of its tensors
chain.py         a network's head: layers that fit each other
state_dict.py    all of these: values → one network
file.py          one file → one checkpoint
"""
