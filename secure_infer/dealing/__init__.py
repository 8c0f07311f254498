"""What becomes of bundles at the dealer: its durable pool, the file that holds one, and the halves that wait."""
