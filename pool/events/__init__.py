"""Events: waiting for them, and delivering them to sinks."""
