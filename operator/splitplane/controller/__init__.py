import splitplane.adapters  # noqa: F401 - prepares the Kubernetes client, before Kopf imports it
