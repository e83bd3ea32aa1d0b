"""`@tracked`: `track_tokens` around a whole function, asynchronous or not, generator or not."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ConfigurationError
from .portal import run_sync

if TYPE_CHECKING:
    from .block import TrackedBlock, Usage
    from .tracker import CostTracker

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Param:
    """The value of one of the decorated function's arguments."""

    name: str


Source = str | Param | Callable[..., Any] | None


def tracked(
    *,
    model: Source,
    tenant_id: Source = None,
    tracker: CostTracker | None = None,
    expected_input_tokens: int | Param | Callable[..., int] | None = None,
    max_output_tokens: int | Param | Callable[..., int] | None = None,
    usage: str | None = None,
    covers_request: bool = True,
) -> Callable[[F], F]:
    """Meter every call of a function that calls a model.

    The return value, or each item a generator yields, is offered to `usage.record`; what carries no usage is ignored.

    Args:
        model: which model: text is literal, `Param("name")` names an argument, a callable gets the function's
            arguments. If the function has a parameter `model`, the admitted model is passed on in it.
        tenant_id: who pays, in the same three ways; None: the tenant of the request that runs.
        tracker: whose ledger; None: the process's own.
        expected_input_tokens: the prompt's bound, in the same three ways (a number is literal).
        max_output_tokens: the answer's bound, likewise.
        usage: the name of a parameter to pass the `Usage` mapping in, for functions that count for themselves.
        covers_request: False for side calls that are not what the request pays for.

    Raises BudgetExceededError, UnknownModelError or StoreError when the function is called. ConfigurationError at
    decoration where a named parameter does not exist.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
        named = [source.name for source in (model, tenant_id, expected_input_tokens, max_output_tokens)
                 if isinstance(source, Param)] + ([usage] if usage else [])  # fmt: skip
        for name in named:
            if name not in signature.parameters and not takes_any:
                raise ConfigurationError(f"@tracked: {function.__qualname__} has no parameter {name!r}")
        passes_model = "model" in signature.parameters

        def block(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[TrackedBlock, inspect.BoundArguments]:
            from .tracker import get_cost_tracker  # noqa: PLC0415 - the tracker imports blocks, not decorators

            bound = signature.bind_partial(*args, **kwargs)
            bound.apply_defaults()

            def resolve(source: Any) -> Any:
                if isinstance(source, Param):
                    if source.name in bound.arguments:
                        return bound.arguments[source.name]
                    return bound.kwargs.get(source.name)
                return source(*args, **kwargs) if callable(source) else source

            made = (tracker or get_cost_tracker()).track_tokens(
                resolve(tenant_id),
                resolve(model),
                expected_input_tokens=resolve(expected_input_tokens),
                max_output_tokens=resolve(max_output_tokens),
                covers_request=covers_request,
            )
            return made, bound

        def inject(bound: inspect.BoundArguments, entered: Usage) -> None:
            if passes_model:
                bound.arguments["model"] = entered.model
            if usage:
                bound.arguments[usage] = entered

        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                made, bound = block(args, kwargs)
                async with made as entered:
                    inject(bound, entered)
                    items = function(*bound.args, **bound.kwargs)
                    try:
                        async for item in items:
                            _offer(entered, item)
                            yield item
                    finally:
                        await items.aclose()

            return stream  # type: ignore[return-value]

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call(*args: Any, **kwargs: Any) -> Any:
                made, bound = block(args, kwargs)
                async with made as entered:
                    inject(bound, entered)
                    result = await function(*bound.args, **bound.kwargs)
                    _offer(entered, result)
                    return result

            return call  # type: ignore[return-value]

        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def sync_stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
                made, bound = block(args, kwargs)
                with _SyncBlock(made, tracker) as entered:
                    inject(bound, entered)
                    for item in function(*bound.args, **bound.kwargs):
                        _offer(entered, item)
                        yield item

            return sync_stream  # type: ignore[return-value]

        @functools.wraps(function)
        def sync_call(*args: Any, **kwargs: Any) -> Any:
            made, bound = block(args, kwargs)
            with _SyncBlock(made, tracker) as entered:
                inject(bound, entered)
                result = function(*bound.args, **bound.kwargs)
                _offer(entered, result)
                return result

        return sync_call  # type: ignore[return-value]

    return decorate


def _offer(usage: Usage, result: Any) -> None:
    """Take the usage out of a result if it is a provider's response; a function may return anything."""
    with contextlib.suppress(TypeError, ValueError):
        usage.record(result)


class _SyncBlock:
    """A `track_tokens` block entered and left from synchronous code."""

    def __init__(self, block: TrackedBlock, tracker: CostTracker | None) -> None:
        from .tracker import get_cost_tracker  # noqa: PLC0415 - as above

        self._block = block
        self._tracker = tracker or get_cost_tracker()

    def __enter__(self) -> Usage:
        return run_sync(self._tracker, self._block.__aenter__)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        run_sync(self._tracker, lambda: self._block.__aexit__(kind, error, trace))
