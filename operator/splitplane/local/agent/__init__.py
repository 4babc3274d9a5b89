"""A light node agent: it registers one node of the embedded cluster and runs the pods bound to it as processes.

What it keeps of a kubelet: registration and heartbeats, the pod lifecycle (init containers, restarts with back-off,
probes, graceful termination), environment and volumes, resource admission, memory limits, events, logs and metrics.
What a process on a shared machine cannot have, it says openly instead:
see :data:`splitplane.local.agent.node.NOT_ENFORCED`.

A pod's processes never outlive their agent: the kernel kills a container's first process with its parent
(``PR_SET_PDEATHSIG``), and a guardian process (:mod:`splitplane.local.agent.guardian`) ends everything that it started.
So ``kill -9`` of the agent is the loss of a node, as far as the cluster can tell.
"""
