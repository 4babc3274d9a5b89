"""Which replicas a site uses that are not its own."""

from dataclasses import dataclass

from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.objects import Key


@dataclass(frozen=True, slots=True)
class Sharing:
    """On ``tier`` a site's stages are those of the user's ``pipeline``, which serve its other sites as well."""

    pipeline: InferencePipeline
    tier: str

    @property
    def key(self) -> Key:
        return self.pipeline.metadata.namespace, self.pipeline.metadata.name
