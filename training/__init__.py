"""How the demo model was made. Nothing in `service` imports from here."""
