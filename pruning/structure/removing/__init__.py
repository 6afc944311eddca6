"""Remove units and blocks from a network, compare it with the masked one, and save what is left."""
