"""Splitplane: adaptive partition orchestration for PyTorch models on Kubernetes."""
