"""The embedded cluster: a real control plane, Prometheus and light node agents as processes of one machine."""
