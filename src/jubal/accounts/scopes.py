"""Which limits a request has to keep: its key's, its team's, and its team's on the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from jubal.accounts.keys import Caller
from jubal.accounts.limits import Scope, ScopeSet
from jubal.accounts.team_limits import ALL, NO_RATES, NOTHING_GIVEN, Rates, TeamLimits
from jubal.accounts.tiers import Tier, Tiers

KNOWN_MAX: Final = 10_000
"""Pairs of key and model whose scopes are remembered."""


class Scopes:
    """tiers: what a team may do unless it was given limits of its own. models: what each team may do with a model, likewise.

    Belongs to one event loop.
    """

    def __init__(self, tiers: Tiers | None = None, models: Mapping[str, Rates] | None = None) -> None:
        self._tiers = tiers or Tiers()
        self._models = dict(models or {})
        self._known: dict[tuple[str, str], tuple[Caller, ScopeSet]] = {}

    def of(self, caller: Caller, model: str) -> ScopeSet:
        """The limits of a request to the model of this public name. Raises `NotAllowed` where the team's tier is not known."""
        known = self._known.get((caller.key_id, model))
        if known is not None and known[0] is caller:  # a caller is read anew each second, and then it is another one
            return known[1]
        made = self._made(caller, model)
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[caller.key_id, model] = caller, made
        return made

    def _made(self, caller: Caller, model: str) -> ScopeSet:
        team = caller.team_id
        words = "This API key has reached its rate limit"
        key = Scope(f"{{{team}}}:key:{caller.key_id}", words, caller.rps, caller.rpm, caller.tpm)
        found = (key, self._of_team(caller), self._of_model(caller, model))
        return tuple(scope for scope in found if (scope.rps, scope.rpm, scope.tpm) != (None, None, None))

    def team_rates(self, tier: Tier, limits: TeamLimits) -> Rates:
        """What a team of this tier may do in all."""
        return limits.all.over(Rates(tier.rps, tier.rpm, tier.tpm)).within(limits.own.get(ALL, NO_RATES))

    def model_rates(self, model: str, limits: TeamLimits) -> Rates:
        """What a team may do with a model, beside what it may do in all."""
        given = limits.models.get(model, NO_RATES).over(self._models.get(model, NO_RATES))
        return given.within(limits.own.get(model, NO_RATES))

    def limits_of(self, model: str | None, tier: str, limits: TeamLimits) -> Rates:
        """The limits of one scope of a team of the tier of this name: on a model, or on all (None)."""
        if model is None:
            return self.team_rates(self._tiers.get(tier) or Tier(tier), limits)
        return self.model_rates(model, limits)

    def rates_on(self, model: str, tier: str, limits: TeamLimits) -> Rates:
        """The most that a team of the tier of this name may do with a model: its limits on the model, and those on all."""
        return self.model_rates(model, limits).within(self.limits_of(None, tier, limits))

    @property
    def models(self) -> list[str]:
        """Those that have limits of their own for every team."""
        return sorted(self._models)

    def _of_team(self, caller: Caller) -> Scope:
        tier = self._tiers.of(caller)
        limits = caller.limits or NOTHING_GIVEN
        words = "Your team has reached its rate limit"
        if limits.all == NO_RATES and ALL not in limits.own:
            words = f"Your team has reached the rate limit of its tier `{tier.name}`"
        return _scope(f"{{{caller.team_id}}}:team", words, self.team_rates(tier, limits))

    def _of_model(self, caller: Caller, model: str) -> Scope:
        words = f"Your team has reached its rate limit on the model `{model}`"
        rates = self.model_rates(model, caller.limits or NOTHING_GIVEN)
        return _scope(f"{{{caller.team_id}}}:model:{model}", words, rates)


def _scope(key: str, words: str, rates: Rates) -> Scope:
    """key: with the team in braces, so that a Redis Cluster keeps all scopes of a request together."""
    return Scope(key, words, rates.rps, rates.rpm, rates.tpm)
