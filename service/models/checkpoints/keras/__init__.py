"""What Keras writes: models, weights alone, KerasHub's presets. Without Keras.

    hdf5.py         arrays out of HDF5 files, and nothing but arrays
    graph.py        a model's configuration → its layers one behind the other
    files.py        .keras, whole-model .h5, .weights.h5, classic weight files → layers with their arrays
    model.py        such layers → a VGG or a DenseNet, its head, what pixels go through
    layers.py       arrays → torchvision's tensors
    hub.py          KerasHub's presets, with hub_heads.py and hub_image.py

KerasCV's ``VGG16Backbone`` is a model of three arguments, which stand for the same layers.
"""
