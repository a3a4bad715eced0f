"""The scripts and manifests that a deployment is made of."""
