"""The admin pages, in reading order: `app` puts them together, `security` guards them, `pages` are the routes.

`queries` reads the records, `show` gives values their looks, `monitoring` answers machines.
"""

from .app import create_app, serve

__all__ = ["create_app", "serve"]
