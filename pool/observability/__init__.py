"""How the pool is doing: metrics, status, health and history."""
