"""Couriers carry opaque signed bytes between coordinator and agents, and may lose, alter or read them."""
