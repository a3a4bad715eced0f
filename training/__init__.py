"""Training of the demo model. `service` imports nothing from here."""
