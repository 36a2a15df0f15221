"""Which models a server has, and when each is in memory."""
