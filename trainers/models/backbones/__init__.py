"""Backbones: one file each, from the flat input of a row to the logits of its tasks, plugged in by composition."""
