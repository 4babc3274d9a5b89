"""Splitplane on a kind cluster of this machine, also where no Docker runs and no image registry is reachable."""
