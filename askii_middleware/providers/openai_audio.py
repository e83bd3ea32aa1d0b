"""OpenAI audio: text to be spoken, and speech to be written down (transcriptions, and translations into English).

Sources: openai SDK 3.54 (`types/audio/`), mistralai SDK 3.7 (`audiotranscriptionrequest.py`), recorded answers of
gpt-4o-transcribe and -diarize, 2026-11.

**Speech.** tts-1 and most others cost by the characters of `input`, which no answer tells. gpt-4o-mini-tts costs by
tokens, told only at the end of its event stream (`speech.audio.done`). About 21 tokens are a second (0.015 USD/min at
12 USD per million tokens, openai.com/api/pricing); the slowest speech takes some 0.4 s per character, at a quarter of
the speed four times that. An answer that is plain audio is measured by its size and the least usual bit rate of its
format, which errs upwards.

**Transcription.** whisper, gpt-transcribe, Groq's and Mistral's models cost by the second, gpt-4o's by tokens: 10 per
second, 12.5 at Mistral, in windows of 30 s. How long a file lasts follows from its size only through the bit rate: at
8 kbit/s, the least that MP3 and Opus speech has, a second takes 1,000 bytes. What is written down stays below Whisper's
448 tokens per window of 30 s, with 2,000 for short files (gpt-4o-transcribe's documented maximum).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, isfinite
from typing import Any

import msgspec
from msgspec.structs import replace

from ..usage import Report, TokenUsage
from .base import CallRequest, InvalidRequestError, StreamReader
from .body import BodyReader
from .bounds import BYTES_PER_TOKEN, TEMPLATE_TOKENS
from .counts import MAX_COUNT, member, text, text_bytes, total
from .fields import as_end_user, is_set, read_bool, read_model, read_text, read_value
from .openai_common import OpenAiApi, absorb_cost, absorb_head, openai_usage
from .sse import SseReader

SPOKEN_TOKENS_PER_SECOND = 21
SPOKEN_TOKENS_PER_CHARACTER = 9
SLOWEST = 4
AUDIO_BYTES_PER_SECOND = 1_000
HEARD_TOKENS_PER_SECOND = 13
WINDOW_TOKENS = 30 * HEARD_TOKENS_PER_SECOND
WRITTEN_TOKENS = 2_000
WRITTEN_TOKENS_PER_SECOND = 16
LIKELY_SHARE = 16
"""Files have some 128 kbit/s, this many times the least."""
REMOTE_SECONDS = 10_800
"""3 h: the longest that Mistral takes; others limit the file to 25 or 100 MB."""
_SOURCES = ("file", "file_url", "file_id", "url", "input_audio")
_PCM_BYTES_PER_SECOND = 48_000  # 24 kHz, 16 bits, one channel
_RATES = ((b"RIFF", _PCM_BYTES_PER_SECOND), (b"OggS", 3_000), (b"fLaC", 20_000), (b"ID3", 8_000))
_WRITTEN = ("transcript.", "transcription.")


class SpeechApi(OpenAiApi):
    """`POST …/audio/speech`: answered by audio, or with `stream_format: "sse"` by events."""

    name = "openai.speech"
    family = "openai.speech"
    kind = "speech"
    suffixes = ("/audio/speech",)

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "input" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        spoken = read_value(fields, "input")
        if type(spoken) is not str:
            raise InvalidRequestError("input must be a string: the text to be spoken")
        model = read_model(fields)
        letters = TokenUsage(character=len(spoken))
        slow = SLOWEST if is_set(fields, "speed") else 1
        return CallRequest(
            model=model,
            stream=read_text(fields, "stream_format") == "sse",
            output_limit=TEMPLATE_TOKENS + len(spoken) * SPOKEN_TOKENS_PER_CHARACTER * slow,
            input_bound=body_bytes + TEMPLATE_TOKENS,
            input_estimate=-(-body_bytes // BYTES_PER_TOKEN),
            media=True,
            end_user=as_end_user(read_text(fields, "user")),
            units=letters,
            billed_by_request=None if _bare(model).startswith("gpt-") else letters,
            fields=fields,
        )

    def limit_field(self, request: CallRequest, model: str) -> None:  # noqa: ARG002 - there is none
        return None

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage comes by itself, or never
        return SseReader(self.absorb)

    def body_reader(self) -> StreamReader:
        return AudioReader(BodyReader(self.absorb, self.answer_members))

    def read_body(self, body: bytes) -> Report:
        if body.lstrip()[:1] == b"{":
            return super().read_body(body)
        reader = self.body_reader()
        reader.feed(body)
        reader.finish()
        return reader.report

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return str(answer.get("type")).startswith("speech.audio.")

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_head(report, answer)
        absorb_cost(report, answer.get("usage"))
        kind = answer.get("type")
        report.failed = report.failed or bool(answer.get("error")) or kind == "error"
        if kind == "speech.audio.delta":
            # Of one format or another: counted as MP3.
            size = text_bytes(answer.get("audio")) * 3 // 4
            report.visible_deltas += -(-size * SPOKEN_TOKENS_PER_SECOND // 8_000)
        usage = openai_usage(answer.get("usage"))
        if usage is not None:
            # All that such a model puts out is audio, though its usage has no details.
            report.usage = replace(usage, output=0, output_audio=usage.output + usage.output_audio)
        report.finished = report.finished or kind == "speech.audio.done"


class AudioReader(StreamReader):
    """Measures an answer that is audio; one that turns out to be JSON is left to `reader`."""

    def __init__(self, reader: BodyReader) -> None:
        self._reader: BodyReader | None = reader
        self._head = b""
        self._size = 0
        self.report = reader.report

    def feed(self, chunk: bytes) -> bytes:
        self._size += len(chunk)
        if len(self._head) < 4:
            self._head += chunk[: 4 - len(self._head)]
        if self._reader is not None:
            if self._head.lstrip()[:1] not in (b"", b"{"):
                self._reader = None
            else:
                self._reader.feed(chunk)
        if self._reader is None:
            self.report.visible_deltas = -(-self._size * SPOKEN_TOKENS_PER_SECOND // _bytes_per_second(self._head))
        return chunk

    def finish(self) -> bytes:
        return b"" if self._reader is None else self._reader.finish()


class TranscriptionsApi(OpenAiApi):
    """`POST …/audio/transcriptions`, `…/audio/translations`: forms with a file, or JSON that names one."""

    name = "openai.transcriptions"
    family = "openai.transcriptions"
    kind = "transcription"
    suffixes = ("/audio/transcriptions", "/audio/translations")
    takes_forms = True
    answer_members = OpenAiApi.answer_members | {"duration"}

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return any(name in fields for name in _SOURCES)

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:  # noqa: ARG002 - the file is in it
        size = _file_bytes(fields)
        remote = size is None
        seconds = REMOTE_SECONDS if size is None else -(-size // AUDIO_BYTES_PER_SECOND) + 1
        letters = sum(len(name) + len(bytes(raw)) for name, raw in fields.items() if name not in _SOURCES)
        model = read_model(fields)
        heard = TokenUsage(second=seconds)
        return CallRequest(
            model=model,
            stream=read_bool(fields, "stream"),
            output_limit=WRITTEN_TOKENS + seconds * WRITTEN_TOKENS_PER_SECOND,
            input_bound=letters + TEMPLATE_TOKENS + WINDOW_TOKENS + seconds * HEARD_TOKENS_PER_SECOND,
            input_estimate=-(-letters // BYTES_PER_TOKEN) + -(-seconds * HEARD_TOKENS_PER_SECOND // LIKELY_SHARE),
            media=True,
            remote_input=remote,
            end_user=as_end_user(read_text(fields, "user")),
            units=heard,
            # Plain text and subtitles do not tell how long the audio was.
            billed_by_request=None if _bare(model).startswith("gpt-4o") else heard,
            fields=fields,
        )

    def limit_field(self, request: CallRequest, model: str) -> None:  # noqa: ARG002 - there is none
        return None

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - usage always comes by itself
        return SseReader(self.absorb)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        kind = answer.get("type")
        if type(kind) is str:
            return kind.startswith(_WRITTEN)
        usage = member(answer, "usage")
        timed = usage.get("type") in ("tokens", "duration") or "prompt_audio_seconds" in usage
        return "text" in answer and (timed or "duration" in answer or "language" in answer) and "choices" not in answer

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_head(report, answer)
        report.provider_request_id = report.provider_request_id or text(member(answer, "x_groq"), "id")
        kind = answer.get("type")
        report.failed = report.failed or bool(answer.get("error")) or kind == "error"
        absorb_cost(report, answer.get("usage"))
        usage = transcription_usage(answer)
        report.usage = usage or report.usage
        if type(kind) is str and kind.startswith(_WRITTEN):
            if kind.endswith(".delta"):
                size = text_bytes(answer.get("delta")) or text_bytes(answer.get("text"))
                report.visible_bytes += size
                report.visible_deltas += size > 0
            report.finished = report.finished or kind.endswith(".done")
        elif usage is None:
            size = text_bytes(answer.get("text"))
            report.visible_bytes += size
            report.visible_deltas += size > 0
        else:
            report.finished = True


def transcription_usage(answer: Mapping[str, Any]) -> TokenUsage | None:
    """What a transcription used: tokens, or the seconds of its audio. What the total has beyond its parts is audio
    (Mistral's). Answers without usage may still tell the duration: Groq's, and `verbose_json` of older servers.
    """
    usage = answer.get("usage")
    if isinstance(usage, dict):
        if "input_token_details" in usage:  # only here without an s
            usage = {**usage, "input_tokens_details": usage["input_token_details"]}
        found = openai_usage(usage, gap_is_input=True)
        if found is not None:
            gap = found.input_tokens - max(total(usage, "input_tokens", "prompt_tokens") or 0, 0)
            if gap > 0:
                heard = min(gap, found.input)
                again = min(gap - heard, found.cache_read)  # as much of it as the prompt's cached text cannot be
                found = replace(
                    found,
                    input=found.input - heard,
                    input_audio=found.input_audio + heard,
                    cache_read=found.cache_read - again,
                    cache_read_audio=found.cache_read_audio + again,
                )
            return found
        seconds = _seconds(usage.get("seconds"))
        if seconds is not None:
            return TokenUsage(second=seconds)
    seconds = _seconds(answer.get("duration"))
    return None if seconds is None else TokenUsage(second=seconds)


def _seconds(value: object) -> int | None:
    """Begun seconds. Older servers send them as text."""
    if type(value) is str and len(value) <= 32:
        try:
            value = float(value)
        except ValueError:
            return None
    if type(value) is int or (type(value) is float and isfinite(value)):
        return ceil(value) if 0 <= value <= MAX_COUNT else None
    return None


def _file_bytes(fields: Mapping[str, msgspec.Raw]) -> int | None:
    """The size of the audio in the request; None where it is somewhere else."""
    file = read_value(fields, "file")
    size = file.get("file_bytes") if isinstance(file, dict) else None
    if type(size) is int and size >= 0:
        return size
    held = member({"input_audio": read_value(fields, "input_audio")}, "input_audio").get("data")
    sent = file if type(file) is str else held
    return len(sent) if type(sent) is str else None


def _bytes_per_second(head: bytes) -> int:
    """The least usual rate of the format that begins like this."""
    for mark, rate in _RATES:
        if head.startswith(mark):
            return rate
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return 6_000 if head[1] & 0x06 == 0 else 8_000  # AAC in ADTS has layer 0 where MP3 has another
    return _PCM_BYTES_PER_SECOND


def _bare(model: str | None) -> str:
    """A model's name without its provider, in lower case."""
    return (model or "").lower().rpartition("/")[2]
