"""Parts of the settings: devices, several models, hosting platforms, and the wording of allowed values."""
