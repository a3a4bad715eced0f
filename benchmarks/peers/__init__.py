"""One job, written for other servers by their own documentation.

Each of the files beside this one is a server that runs in a virtual environment of its own and knows nothing of
ours: densenet121 in torch eager with the weights of ``torch.manual_seed(0)``, a JPEG in, the five best classes out.
`__main__` starts them in turn with ours and compares.
"""
