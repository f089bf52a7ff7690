"""Imports on their way: when to ask, and who tells without being asked."""
