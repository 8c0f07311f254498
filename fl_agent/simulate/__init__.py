"""A federation on one machine: `arithmetic` (its numbers without a wire), `federation` (all of it), `cli`."""
