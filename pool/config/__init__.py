"""``config.toml`` as frozen settings, and what is checked at the door."""
