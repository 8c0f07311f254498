"""What party and dealer offer those who run them: reloading, audit trail, metrics, and how memory is held."""
