"""Callbacks for other training loops; each file needs the library it is named after, so open one by one."""

__all__: list[str] = []
