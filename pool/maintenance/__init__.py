"""What the pool does by itself: one service a file, each with a ``run_once`` that says what it did.

Services know nothing of intervals; :mod:`pool.maintenance.scheduler` alone does. Their decisions
are pure functions of rows, settings and the time.
"""
