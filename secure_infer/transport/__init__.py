"""Messages between processes: one mutual TLS 1.3 channel, the server that accepts them, and those kept open."""
