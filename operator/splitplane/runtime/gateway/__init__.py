"""The gateway of one pipeline: serves its model over the Open Inference Protocol and takes each request over a route.

No torch here. The slow loop (operator) says in a RouteTable which routes are admissible; the fast loop (here) picks the
first one whose stages are alive, per request, and goes on doing so when operator and API server are away.
"""
