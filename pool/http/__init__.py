"""The daemon's HTTP side: the API, the page, CVAT's webhooks. FastAPI is imported only here.

A module a noun has its routes; they find the parts of the daemon in
:class:`pool.http.context.AppState`, which :func:`pool.http.app.create_app` makes. Bodies and
answers are the models of :mod:`pool.http.schemas`, all errors problem documents (RFC 9457).
:mod:`pool.client` is the other end, and imports nothing of this one.
"""
