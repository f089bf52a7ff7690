"""``cvat-pool``, the pool from the command line."""
