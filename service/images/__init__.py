"""Images: from bytes to pixels. Other rooms enter through `service.preprocess`."""
