"""``cvat-pool bench``: measures the pool beside the plain ways to job ids, in one run.

It stands on top of everything else, as the demo does, which shares its flows and processes.
"""
