"""Faults under load, on the embedded cluster: `make chaos` (docs/faults.md)."""
