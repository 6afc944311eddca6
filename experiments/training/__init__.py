"""Training: one loop, which goes on where it was cut."""
