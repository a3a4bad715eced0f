"""The machine and the installation: what there is of them, and how they are asked."""
