"""The daemon's HTTP side: CVAT's webhooks, and whether it is alive. FastAPI is imported only here.

Each part is a router of its own, made for what it works on; :func:`pool.http.app.create_app` puts
them together. All errors are problem documents (RFC 9457).
"""
