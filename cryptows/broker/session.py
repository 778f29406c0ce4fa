"""The state of one client: who it is, what it subscribed to, and whether it is still welcome.

A session begins anonymous or authenticated and ends once, for one reason. Its steps are a table, so
that a step which must not happen is a bug that shows. Whether a channel may be subscribed is
decided here and only here. Protocol sections 3 and 4.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import attrs

from cryptows.broker.auth import Identity
from cryptows.model.channel import MAX_SYMBOL, Access, ChannelClass, ChannelTable, Pattern, Role
from cryptows.model.errors import Refusal, RequestError

_ADMINS = (Role.ADMIN, Role.SUPER_ADMIN)


class State(enum.StrEnum):
    """Where a session stands."""

    ANONYMOUS = "anonymous"
    AUTHENTICATED = "authenticated"
    ENDING = "ending"  # the goodbye is on its way
    ENDED = "ended"


class Step(enum.StrEnum):
    """What happens to a session."""

    AUTHENTICATE = "authenticate"  # a first or a fresh token
    END = "end"  # the daemon says goodbye
    LOSE = "lose"  # the transport is gone


STEPS: dict[tuple[State, Step], State] = {
    (State.ANONYMOUS, Step.AUTHENTICATE): State.AUTHENTICATED,
    (State.AUTHENTICATED, Step.AUTHENTICATE): State.AUTHENTICATED,
    (State.ANONYMOUS, Step.END): State.ENDING,
    (State.AUTHENTICATED, Step.END): State.ENDING,
    (State.ANONYMOUS, Step.LOSE): State.ENDED,
    (State.AUTHENTICATED, Step.LOSE): State.ENDED,
    (State.ENDING, Step.LOSE): State.ENDED,
}


@attrs.frozen
class Subscribed:
    """The outcome of a subscribe request: the whole new set, what was granted of it or denied."""

    patterns: frozenset[Pattern]
    granted: tuple[Pattern, ...]
    denied: tuple[dict[str, str], ...]


@attrs.define(eq=False)
class Session:
    """One client's session. `address` is the client's own, not a proxy's."""

    id: str
    identity: Identity
    address: str
    patterns: frozenset[Pattern] = frozenset()
    state: State = State.ANONYMOUS
    since: float = 0.0  # steady clock: connected, or last seen with a subscription
    warned_of: float | None = None  # the end of a token that was announced

    def __attrs_post_init__(self) -> None:
        if self.identity.user_id is not None:
            self.state = State.AUTHENTICATED

    @property
    def open(self) -> bool:
        """Whether requests are answered and events delivered."""
        return self.state in (State.ANONYMOUS, State.AUTHENTICATED)

    @property
    def authenticated(self) -> bool:
        """Whether a token was accepted."""
        return self.identity.user_id is not None

    def step(self, step: Step) -> bool:
        """Take a step; return False, changing nothing, where the table has none."""
        state = STEPS.get((self.state, step))
        if state is None:
            return False
        self.state = state
        return True

    def authenticate(self, identity: Identity, table: ChannelTable) -> tuple[Pattern, ...]:
        """Take a first or fresh token; return the subscriptions that it no longer covers.

        Raises Refusal(4001) when the token belongs to another user than the session.
        """
        self.check_user(identity)
        if not self.step(Step.AUTHENTICATE):
            raise Refusal(4001, "the session has ended", come_back=False)
        self.identity = identity
        return self.review(table)

    def review(self, table: ChannelTable) -> tuple[Pattern, ...]:
        """Drop the subscriptions that are not allowed (any more), and return them."""
        lost = tuple(p for p in self.patterns if self._why_not(p, table) is not None)
        self.patterns = self.patterns.difference(lost)
        return lost

    def check_user(self, identity: Identity) -> None:
        """Raise Refusal(4001) for a token of another user than the session's."""
        if self.authenticated and identity.user_id != self.identity.user_id:
            raise Refusal(4001, "the token belongs to another user", come_back=False)

    def may(self, rules: ChannelClass, owner: str | None) -> bool:
        """Whether this client may subscribe to a channel (`owner`: the user it belongs to)."""
        access, role = rules.access, self.identity.role
        if access is Access.PUBLIC:
            return True
        if access is Access.AUTHENTICATED:
            return self.authenticated
        if access is Access.USER:
            own = self.authenticated and self.identity.user_id == owner
            return own or role is Role.SUPER_ADMIN
        return role in _ADMINS

    def available(self, table: ChannelTable) -> list[str]:
        """The channels this client may subscribe to; its own of each per-user family."""
        user = self.identity.user_id
        names = []
        for rules in table.classes:
            if rules.per_user:
                if user is not None and self.may(rules, user):
                    names.append(rules.of_user(user))
            elif self.may(rules, None):
                names.append(rules.name)
        return names

    def subscribe(self, asked: Sequence[str], table: ChannelTable, most: int) -> Subscribed:
        """Decide a subscribe request, channel by channel; the caller takes over the outcome."""
        patterns = set(self.patterns)
        granted: dict[Pattern, None] = {}
        denied = []
        for text in dict.fromkeys(asked):
            pattern = Pattern.parse(text)
            why = self._why_not(pattern, table)
            if why is None and pattern not in patterns and len(patterns) >= most:
                why = ("too_many_subscriptions", f"a client may have {most}")
            if why is not None:
                denied.append({"channel": text[:200], "code": why[0], "message": why[1]})
                continue
            patterns.add(pattern)
            granted[pattern] = None
        return Subscribed(frozenset(patterns), tuple(granted), tuple(denied))

    def _why_not(self, pattern: Pattern, table: ChannelTable) -> tuple[str, str] | None:
        """Return code and message of what forbids a subscription, or None."""
        found = table.find(pattern.channel)
        if found is None:
            return "unknown_channel", "there is no such channel"
        rules, owner = found
        if not self.may(rules, owner):
            if not self.authenticated:
                return "forbidden", "this channel needs a token"
            return "forbidden", f"this channel is not for role {self.identity.role}"
        if pattern.symbol is not None:
            if not rules.symbols:
                return "bad_request", f"{rules.name} cannot be subscribed by symbol"
            if not 0 < len(pattern.symbol) <= MAX_SYMBOL:
                return "bad_request", f"a symbol has 1 to {MAX_SYMBOL} characters"
        return None

    def readable(self, channel: str, table: ChannelTable) -> Pattern:
        """Return the pattern of a channel whose history may be read; raise RequestError."""
        pattern = Pattern.parse(channel)
        why = self._why_not(pattern, table)
        if why is not None:
            raise RequestError(why[0], f"{channel[:200]}: {why[1]}")
        return pattern

    def describe(self) -> dict[str, Any]:
        """Who this is, for the messages `connection` and `authenticated`."""
        return {
            "clientId": self.id,
            "userId": self.identity.user_id,
            "role": str(self.identity.role),
        }
