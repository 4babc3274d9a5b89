"""What tests share among themselves, and with benchmarks/."""
