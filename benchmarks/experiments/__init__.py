"""The experiments: cells that are computed once, and tables with intervals that are made of them."""
