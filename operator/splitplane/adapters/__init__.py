from splitplane.adapters import client_library

client_library.prepare()
