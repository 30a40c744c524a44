"""Feast plug-ins: stores that any Feast user can name in a `feature_store.yaml`."""
