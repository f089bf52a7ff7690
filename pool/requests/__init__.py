"""One lifecycle of a request: from a caller's files to job ids."""
