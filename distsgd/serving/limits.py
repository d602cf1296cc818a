"""What one client may ask of a server of predictions, and what all may together."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from distsgd.errors import UsageError

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of requests; what exceeds one is refused with a clear answer.

    Attributes:
        body: bytes of the body of a request.
        rows: rows or images of a request.
        pixels: pixels of an image, by its header, before it is decoded.
        seconds: for the head of a request to arrive, and as many for its body.
        connections: open at once.
        waiting: rows that wait to be computed, of all requests.
        delay: seconds that a row waits for rows of other requests at most.
        stop: seconds that open requests have to end when the server stops.
    """

    body: int = 16 << 20
    rows: int = 4096
    pixels: int = 16_000_000
    seconds: float = 10.0
    connections: int = 256
    waiting: int = 16_384
    delay: float = 0.001
    stop: float = 30.0

    def changed(self, given: list[str]) -> Limits:
        """With others, as ``["rows=100", "seconds=2.5"]``.

        Raises:
            UsageError: there is no such limit, or its value cannot be used.
        """
        kinds = {field.name: type(getattr(self, field.name)) for field in fields(self)}
        found: dict[str, float] = {}
        for one in given:
            name, _, value = one.partition("=")
            if name not in kinds:
                raise UsageError(f"there is no limit {name}", f"There are {', '.join(kinds)}")
            try:
                found[name] = kinds[name](value)
            except ValueError:
                found[name] = -1
            if not (0 < found[name] < 1e15 or (name == "delay" and found[name] == 0)):
                raise UsageError(f"the limit {name} cannot be {value}", "Give a positive number")
        return replace(self, **found)  # type: ignore[arg-type]
