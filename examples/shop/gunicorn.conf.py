"""Four worker processes, one store of sessions."""

import os

chdir = os.path.dirname(os.path.abspath(__file__))
wsgi_app = "app:app"
workers = 4
threads = 4  # browsers open connections ahead of use; a thread waits for them, not a worker
keepalive = 0  # a reload may reach another worker: none is special
control_socket_disable = True
