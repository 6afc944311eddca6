"""Records: what a run leaves in its folder, the contract between what runs and what draws."""

from experiments.records.rows import FILE, FORMAT, read, require, write

__all__ = ["FILE", "FORMAT", "read", "require", "write"]
