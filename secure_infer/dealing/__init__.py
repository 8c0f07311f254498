"""Bundles dealt ahead: the dealer's durable pool and the file that holds one bundle."""
