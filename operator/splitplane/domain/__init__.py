"""Frozen values that every other layer speaks in, and their arithmetic. Imports nothing of the other layers."""
