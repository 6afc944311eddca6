"""Find which slices of which tensors must go together, and what each unit costs."""
