"""The daemon's HTTP side: the API, the page, CVAT's webhooks. FastAPI is imported only here.

Each part is a router of its own, made for what it works on; :func:`pool.http.app.create_app` puts
them together. All errors are problem documents (RFC 9457). :mod:`pool.client` is the other
end of it, and imports nothing of this one.
"""
