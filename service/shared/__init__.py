"""Memory and sockets that several processes share, and the values that travel through them."""
