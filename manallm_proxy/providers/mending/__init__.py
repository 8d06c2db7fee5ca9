"""What to send a target after it has refused a request, and what to learn of it."""
