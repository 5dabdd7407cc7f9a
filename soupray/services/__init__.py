"""What runs around a sweep: its home, its place, and the servers of this machine."""
