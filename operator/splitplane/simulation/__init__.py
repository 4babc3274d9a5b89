"""Days of load and links replayed through the real planner and through what it is compared with. Pure but for files."""
