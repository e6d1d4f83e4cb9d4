"""Claims: comparisons of recipes that a study declares before it has runs to decide them."""

from pydantic import Field

from dataeff.specs.spec import Spec


class ClaimSpec(Spec):
    """The loss of recipe `better` is lower than that of `than` at D = `at`, each at its best size. `dataeff.laws.judge` decides."""

    better: str
    than: str
    at: int  # one of the study's seed_tokens
    by: float = Field(default=0.0, ge=0, description="more than so much lower (nats/token)")
