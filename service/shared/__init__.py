"""What several processes share: memory, sockets, and the values that travel through them."""
