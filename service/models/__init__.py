"""Everything that knows tensors. Importing this package imports no torch; its modules do, each for itself."""
