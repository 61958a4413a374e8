"""The labelling app: a server of pages and an HTTP API (docs/guides/labelling-server.md)."""
