"""Files of tensors, as training scripts save them: what they are, what is in them, which network that is.

recognise.py     a file's kind by its bytes, and what to do with a kind that cannot be served
files.py         the values in a file, without running anything of it
search.py        the networks among them, whatever wraps and prefixes them
shapes.py        a network's configuration by the shapes of its tensors
chain.py         its head: layers that fit each other
state_dict.py    all of these: values → one network
file.py          one file → one checkpoint
"""
