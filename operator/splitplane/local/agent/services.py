"""What all pods of a node share."""

from dataclasses import dataclass

from splitplane.local.agent.addresses import AddressPool
from splitplane.local.agent.api import Api
from splitplane.local.agent.cluster import ClusterReader
from splitplane.local.agent.config import AgentConfig
from splitplane.local.agent.environment import NodeFacts
from splitplane.local.agent.events import Events
from splitplane.local.agent.following import ObjectFollower
from splitplane.local.agent.guard import Guard
from splitplane.local.agent.starts import Turns


@dataclass(frozen=True)
class Services:
    """The node's configuration and its doors to the outside."""

    config: AgentConfig
    api: Api
    reader: ClusterReader
    events: Events
    guard: Guard
    addresses: AddressPool
    follower: ObjectFollower
    turns: Turns

    @property
    def facts(self) -> NodeFacts:
        """The node, as the downward API tells it."""
        config = self.config
        return NodeFacts(name=config.node, address=str(config.node_address), cpu=config.cpu, memory=config.memory)
