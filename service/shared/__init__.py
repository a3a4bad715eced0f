"""What several processes agree on: the memory and sockets between them, and what travels there."""
