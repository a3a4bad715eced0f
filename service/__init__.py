"""imagenet-serve: ImageNet classification with a VGG or a DenseNet behind an HTTP port."""

__version__ = "0.2.0"
