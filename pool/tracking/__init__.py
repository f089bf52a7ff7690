"""Imports under way: polling, and the webhooks that announce their ends."""
