"""Loaders: each turns one kind of raw log into the same source tables (see `schema`)."""
