"""`make demo`: a trained model split between edge and cloud nodes, served, and re-planned through five events."""
