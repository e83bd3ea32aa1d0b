"""OpenAI images: generations, edits (as forms or JSON) and variations.

The GPT image models report tokens; what they generate is image output. DALL-E and most others report nothing and cost
a price for each image (`request_usd`). Sources: openai SDK 3.54 (`types/image_generate_params.py`,
`image_edit_params.py`, `images_response.py`, `image_gen_completed_event.py`), a recorded answer of gpt-image-1,
2026-11.

**Output bound.** gpt-image-1, -1-mini and -1.5 have a table for three sizes: 272 to 408 tokens at low quality, 1,056 to
1,584 at medium, 4,160 to 6,240 at high (developers.openai.com/api/docs/guides/image-generation). For gpt-image-2 the
guide has a calculator, whose rule is known from its code (community.openai.com/t/1382699): with a factor `f` of 16,
48 or 96 by quality, `f * round(f * short / long) * (2,000,000 + pixels) / 4,000,000`; 1024x1024 at high is 7,024.
gpt-image-2.6 is reported to take up to four times as much at low and medium. `xhigh` and `max` are documented nowhere
and taken for two and four times `high`; `auto` for `high` at no more than 2560x1440, above which sizes are called
experimental. A partial image costs 100 tokens more. The model may change after the request is read, so the bound is
the largest of these for any model.

**Input bound.** Each of `n` images is billed as a call of its own, its prompt and input images included. Input images
at high fidelity are documented with up to 6,692 tokens for gpt-image-1, and as patches with 10,000 at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from ..usage import Report, TokenUsage
from .base import CallRequest, StreamReader
from .bounds import BYTES_PER_TOKEN, LIKELY_IMAGE_TOKENS, TEMPLATE_TOKENS
from .counts import member, part, text, total
from .fields import as_end_user, read_bool, read_int, read_model, read_text, read_value
from .large_events import LargeEventReader
from .openai_common import OpenAiApi, absorb_cost, absorb_head, openai_usage

MAX_IMAGES = 100
"""In one call; OpenAI takes 10 and reads 16."""
INPUT_IMAGE_TOKENS = 10_000
PARTIAL_IMAGE_TOKENS = 100
GIF_FRAMES = 9
_EDGES = 3_840
_AUTO_EDGE = 1_920  # 1920x1920 has the pixels of 2560x1440 in the dearest shape
_FACTORS = {"low": 32, "medium": 96, "high": 96, "auto": 96, "standard": 96, "hd": 96, "xhigh": 136, "max": 192}
_TABLE = {"low": 408, "medium": 1_584}
_TABLE_HIGH = 6_240
_INPUTS = ("image", "images", "mask", "markup")
_EVENTS = ("image_generation.", "image_edit.")
_TOKEN_BILLED = "gpt-image"  # noqa: S105 - a model's name


class ImagesApi(OpenAiApi):
    """`POST …/images/generations`, `…/images/edits`, `…/images/variations`."""

    name = "openai.images"
    family = "openai.images"
    kind = "image"
    suffixes: tuple[str, ...] = ("/images/generations", "/images/edits", "/images/variations")
    takes_forms = True
    answer_members = OpenAiApi.answer_members | {"svg_usage", "created"}

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "prompt" in fields or "image" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:  # noqa: ARG002 - files are in it
        n = read_int(fields, "n", minimum=1, maximum=MAX_IMAGES) or 1
        gif = read_text(fields, "output_format") == "gif"
        frames = read_int(fields, "frame_count", minimum=1, maximum=MAX_IMAGES) or (GIF_FRAMES if gif else 1)
        partial = read_int(fields, "partial_images", minimum=0, maximum=MAX_IMAGES) or 0
        made = image_tokens(read_text(fields, "size"), read_text(fields, "quality"))
        inputs = sum(_images(fields, name) for name in _INPUTS if name in fields)
        letters = sum(len(name) + len(bytes(raw)) for name, raw in fields.items() if name not in _INPUTS)
        model = read_model(fields)
        svg = read_value(fields, "svg")
        author = text(svg, "model") if isinstance(svg, dict) else read_text(fields, "svg[model]")
        return CallRequest(
            model=model,
            other_models=() if author is None else (author,),
            stream=read_bool(fields, "stream"),
            output_limit=made * frames + partial * PARTIAL_IMAGE_TOKENS,
            choices=n,
            input_bound=n * (letters + TEMPLATE_TOKENS + inputs * INPUT_IMAGE_TOKENS),
            input_estimate=n * (-(-letters // BYTES_PER_TOKEN) + inputs * LIKELY_IMAGE_TOKENS),
            media=True,
            end_user=as_end_user(read_text(fields, "safety_identifier") or read_text(fields, "user")),
            units=TokenUsage(request=n),
            billed_by_request=None if _TOKEN_BILLED in (model or "").lower() else TokenUsage(request=n),
            fields=fields,
        )

    def limit_field(self, request: CallRequest, model: str) -> None:  # noqa: ARG002 - there is none
        return None

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return LargeEventReader(self.absorb, self.answer_members)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        kind = answer.get("type")
        if type(kind) is str:
            return kind.startswith(_EVENTS)
        # What the SDK hands out comes without its `data`, and from older models without anything but counts.
        named = any(name in answer for name in ("data", "quality", "output_format", "usage"))
        return "created" in answer and named and not any(name in answer for name in ("object", "choices", "id"))

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_head(report, answer)
        kind = answer.get("type")
        report.failed = report.failed or bool(answer.get("error")) or kind == "error"
        absorb_cost(report, answer.get("usage"))
        usage = image_usage(answer.get("usage"))
        if type(kind) is str and kind.startswith(_EVENTS):
            if kind.endswith(".completed"):
                report.finished = True
                # Every image of a stream comes with its own.
                report.usage = usage if usage is None or report.usage is None else _sum(report.usage, usage)
            return
        report.usage = usage or report.usage
        svg = member(answer, "svg_usage")
        author = text(svg, "model")
        if author is not None:
            written = TokenUsage.from_totals(
                total(svg, "input_tokens") or 0,
                total(svg, "output_tokens") or 0,
                reasoning_tokens=part(svg, "reasoning_tokens"),
            )
            report.other_usage = ((author, written),)
        report.finished = report.finished or usage is not None


def image_usage(usage: object) -> TokenUsage | None:
    """Usage of an image model: what it does not say to be text is images. None if it counts nothing."""
    found = openai_usage(usage)
    if found is None or not isinstance(usage, dict):
        return None
    details = member(usage, "output_tokens_details", "completion_tokens_details")
    if "image_tokens" in details:
        return found
    letters = min(max(part(details, "text_tokens"), 0), found.output)
    return replace(found, output=letters, output_image=found.output - letters)


def image_tokens(size: str | None, quality: str | None) -> int:
    """The most tokens one image takes, at a size such as `1536x864` and a quality; either may be `auto`."""
    quality = quality or "auto"
    factor = _FACTORS.get(quality, _FACTORS["max"])
    width, height = _edges(size)
    short, long = min(width, height), max(width, height)
    tokens = -(-factor * -(-factor * short // long) * (2_000_000 + width * height) // 4_000_000)
    return max(tokens, _TABLE.get(quality, _TABLE_HIGH))


def _edges(size: str | None) -> tuple[int, int]:
    if size is None or size == "auto":
        return _AUTO_EDGE, _AUTO_EDGE
    width, _, height = size.partition("x")
    if not (size.isascii() and width.isdecimal() and height.isdecimal() and len(size) <= 16):
        return _EDGES, _EDGES
    return min(max(int(width), 1), _EDGES), min(max(int(height), 1), _EDGES)


def _images(fields: Mapping[str, msgspec.Raw], name: str) -> int:
    """How many images a member holds: files of a form, or references and data URLs in JSON."""
    value = read_value(fields, name)
    if isinstance(value, list):
        return len(value)
    if isinstance(value, dict) and type(value.get("files")) is int:
        return max(int(value["files"]), 1)
    return 0 if value is None else 1


def _sum(first: TokenUsage, second: TokenUsage) -> TokenUsage:
    counts = {name: getattr(first, name) + getattr(second, name) for name in TokenUsage.__struct_fields__}
    return TokenUsage(**counts | {"anomalous": first.anomalous or second.anomalous})
