"""The outbox: what happens is waited for here, and told to sinks."""
