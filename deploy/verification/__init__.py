"""What `deploy/verify` runs: one module for each kind of file, one function a step."""
