"""Reads Keras's files without Keras: models, weights alone, KerasHub's presets.

    hdf5.py         arrays from HDF5 files, and nothing else
    graph.py        a model's configuration → its layers in order
    files.py        .keras, whole-model .h5, .weights.h5, classic weight files → layers with their arrays
    model.py        such layers → a checkpoint, with body.py (the backbone), head.py and before.py (preprocessing)
    layers.py       arrays → torchvision's tensors
    hub.py          KerasHub's presets, with hub_heads.py and hub_image.py

KerasCV's ``VGG16Backbone`` stores three arguments that stand for the same layers.
"""
