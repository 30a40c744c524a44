"""Clicks as they happen: from a file that grows or from Redis Streams into the online store."""
