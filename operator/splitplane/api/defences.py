"""Noise and dropout at a cut, as pipelines ask for them and profiles are measured with."""

from typing import Annotated

from splitplane.api.fields import Model, Share, rule, rules, text
from splitplane.domain.defences import Defence

_DEVIATIONS = text("^[0-9]([.][0-9]{1,6})?$", 'must be a number from 0 to 9.999999 in quotes, such as "0.5"', longest=8)


class CutDefence(Model):
    """What is done to floating tensors before they leave the tiers marked ``trusted``. It costs accuracy."""

    model_config = rules(
        rule("double(self.noise) > 0.0 || double(self.dropout) > 0.0", "give noise, dropout, or both; or remove it"),
        rule("double(self.dropout) < 1.0", "must be less than 1, or nothing is left", field=".dropout"),
    )

    noise: Annotated[str, *_DEVIATIONS] = "0"
    """Gaussian noise, in standard deviations of each tensor."""
    dropout: Share = "0"
    """Share of the elements that is set to zero; the others grow, so that the mean stays."""


def to_defence(defence: CutDefence | None) -> Defence:
    return Defence() if defence is None else Defence(float(defence.noise), float(defence.dropout))
