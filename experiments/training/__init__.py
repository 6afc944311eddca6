"""Training: one loop, which resumes from checkpoints."""
