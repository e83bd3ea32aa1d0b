"""`@tracked`: `track_tokens` around a whole function, asynchronous or not, generator or not."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .errors import ConfigurationError
from .portal import run_or_leave, run_sync

if TYPE_CHECKING:
    from .block import TrackedBlock
    from .counting import Usage
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
    expected_input_tokens: int | Param | Callable[..., int | None] | None = None,
    max_output_tokens: int | Param | Callable[..., int | None] | None = None,
    usage: str | None = None,
    covers_request: bool = True,
) -> Callable[[F], F]:
    """Meter every call of a function that calls a model. The function keeps its type.

    The return value, or each item a generator yields, is offered to `usage.record`; what carries no usage is ignored.
    A generator that is closed early, or breaks off, after its first item costs its prompt and what was seen.

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
    decoration where a named parameter does not exist. A synchronous function raises RuntimeError on the event loop
    that serves its tracker: call it in a thread there.
    """
    options = {
        "tenant_id": tenant_id,
        "model": model,
        "expected_input_tokens": expected_input_tokens,
        "max_output_tokens": max_output_tokens,
    }

    def decorate(function: F) -> F:
        prepare = _preparation(function, options, tracker, usage, covers_request=covers_request)

        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
                block, start = prepare(args, kwargs)
                async with block as entered:
                    items = start(entered)
                    resume: Callable[[], Any] = functools.partial(anext, items)
                    while True:
                        try:
                            item = await resume()
                        except StopAsyncIteration:
                            return
                        entered.begin()
                        _offer(entered, item)
                        try:
                            sent = yield item
                        except GeneratorExit:
                            await items.aclose()
                            raise
                        except BaseException as error:  # noqa: BLE001 - meant for the function
                            resume = functools.partial(items.athrow, error)
                        else:
                            resume = functools.partial(items.asend, sent)

            return cast(F, stream)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call(*args: Any, **kwargs: Any) -> Any:
                block, start = prepare(args, kwargs)
                async with block as entered:
                    result = await start(entered)
                    _offer(entered, result)
                    return result

            return cast(F, call)

        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def sync_stream(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                block, start = prepare(args, kwargs)
                with _SyncBlock(block) as entered:
                    return (yield from _relay(start(entered), entered))

            return cast(F, sync_stream)

        @functools.wraps(function)
        def sync_call(*args: Any, **kwargs: Any) -> Any:
            block, start = prepare(args, kwargs)
            with _SyncBlock(block) as entered:
                result = start(entered)
                _offer(entered, result)
                return result

        return cast(F, sync_call)

    return decorate


Start = Callable[["Usage"], Any]


def _preparation(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    tracker: CostTracker | None,
    usage: str | None,
    *,
    covers_request: bool,
) -> Callable[[tuple[Any, ...], dict[str, Any]], tuple[TrackedBlock, Start]]:
    """What every call does first: from its arguments to a block, and to the function that is left to be called with
    what the block gives.
    """
    signature = inspect.signature(function)
    name = getattr(function, "__qualname__", repr(function))
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    counted = [usage] if usage else []
    for needed in [option.name for option in options.values() if isinstance(option, Param)] + counted:
        if needed not in signature.parameters and not takes_any:
            raise ConfigurationError(f"@tracked: {name} has no parameter {needed!r}")
    if options["model"] is None:
        raise ConfigurationError(f"@tracked: {name} needs a model")
    injected = [parameter for parameter in ("model", *counted) if parameter in signature.parameters]

    def prepare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[TrackedBlock, Start]:
        from .default_tracker import get_cost_tracker  # noqa: PLC0415 - only where no tracker was given

        bound = signature.bind_partial(*args, **kwargs)
        for parameter in injected:
            bound.arguments.setdefault(parameter, signature.parameters[parameter].default)
        # Whatever else is missing is a mistake of the caller's, and found before anything is held.
        bound = signature.bind(*bound.args, **bound.kwargs)
        bound.apply_defaults()

        def resolve(option: Any) -> Any:
            if isinstance(option, Param):
                found = bound.arguments.get(option.name, bound.kwargs.get(option.name))
                return None if found is inspect.Parameter.empty else found
            return option(*args, **kwargs) if callable(option) else option

        block = (tracker or get_cost_tracker()).track_tokens(
            **{argument: resolve(option) for argument, option in options.items()}, covers_request=covers_request
        )

        def start(entered: Usage) -> Any:
            given = {"model": entered.model, **dict.fromkeys(counted, entered)}
            bound.arguments.update({parameter: given[parameter] for parameter in injected})
            more = {parameter: entered for parameter in counted if parameter not in injected}
            return function(*bound.args, **bound.kwargs, **more)

        return block, start

    return prepare


def _offer(usage: Usage, result: Any) -> None:
    """Take the usage out of a result if it is a provider's response; a function may return anything."""
    with contextlib.suppress(TypeError, ValueError):
        usage.record(result)


def _relay(items: Generator[Any, Any, Any], usage: Usage) -> Generator[Any, Any, Any]:
    """A generator's items as they come, with what is sent and thrown in on the way back, and its return value."""
    resume: Callable[[], Any] = functools.partial(next, items)
    while True:
        try:
            item = resume()
        except StopIteration as done:
            _offer(usage, done.value)
            return done.value
        usage.begin()
        _offer(usage, item)
        try:
            sent = yield item
        except GeneratorExit:
            items.close()
            raise
        except BaseException as error:  # noqa: BLE001 - meant for the function
            resume = functools.partial(items.throw, error)
        else:
            resume = functools.partial(items.send, sent)


class _SyncBlock:
    """A `track_tokens` block entered and left from synchronous code."""

    def __init__(self, block: TrackedBlock) -> None:
        self._block = block

    def __enter__(self) -> Usage:
        block = self._block
        try:
            return run_sync(block.tracker, block.__aenter__)
        except Exception:
            raise
        except BaseException as interrupt:
            # It may have been entered all the same.
            error = interrupt
            run_or_leave(block.tracker, lambda: block.abandon(error))
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # A generator may be closed anywhere, by the garbage collector even on the tracker's own loop.
        run_or_leave(self._block.tracker, lambda: self._block.__aexit__(kind, error, trace))
