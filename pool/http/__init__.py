"""The HTTP server of the daemon: the API, the dashboard, and CVAT's webhooks.

Each module of routes is about one resource. Routes find the parts of the daemon in
:class:`pool.http.context.AppState`, which :func:`pool.http.app.create_app` makes. Bodies and
responses are the models of :mod:`pool.http.schemas`; all errors are problem documents (RFC 9457).
FastAPI is imported only here. :mod:`pool.client` is the client, and imports nothing of this.
"""
