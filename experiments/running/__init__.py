"""Running: from a configuration to rows, by stages that are made once."""
