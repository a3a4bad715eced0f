"""What the service tells of itself: metrics, traces, log lines, the model card."""
