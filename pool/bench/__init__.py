"""``cvat-pool bench``: measure the pool beside the plain ways to job ids, in one run.

The demo shares its flows and processes.
"""
