"""Tests and benches of VeilRay."""
