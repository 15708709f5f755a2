"""What a session is: no Flask, no files, no sockets. Imports nothing outside this folder."""
