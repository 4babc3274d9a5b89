"""A stage: one pod that keeps a range of a model's segments resident and runs, per request, a range within it."""
