"""Records: what a run leaves in its folder, the contract between what runs and what draws."""

from experiments.records.rows import FILE, FORMAT, as_dicts, read, require, write

__all__ = ["FILE", "FORMAT", "as_dicts", "read", "require", "write"]
