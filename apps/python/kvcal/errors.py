"""What kvcal raises: one family, so that one `except kvcal.Error` catches all of it."""


class Error(Exception):
    """A file, a model or a cache that does not fit: what was wrong, where, what was expected, what to do."""


class UsageError(Error):
    """A call with arguments that no file or model could make right."""
