"""The page that people see at the server's address."""
