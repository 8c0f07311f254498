"""Alembic's migrations of the site's records."""
