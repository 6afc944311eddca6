"""Record one forward pass: its operators, and the tensors that they take and make."""
