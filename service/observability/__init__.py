"""Observability: metrics, traces, log lines, the model card."""
