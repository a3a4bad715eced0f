"""The machine and the installation: processor, memory, processes, packages, sample photos."""
