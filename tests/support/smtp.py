"""A small SMTP server on loopback (RFC 5321), with faults: as much as an alert needs."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from email.message import EmailMessage


class Mailbox:
    """What was said to the server. `refusals` are answered, one each, to the next messages' ends instead of 250;
    recipients in `unknown` are refused.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.tls = tls
        self.messages: list[EmailMessage] = []
        self.envelopes: list[tuple[str, tuple[str, ...]]] = []
        self.logins: list[tuple[str, bool]] = []
        """What AUTH was given, and whether through TLS."""
        self.refusals: list[bytes] = []
        self.unknown: set[str] = set()
        self.silent = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            if self.silent:
                await reader.read()
                return
            await self._session(reader, writer)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sender, secure = "", False
        recipients: list[str] = []
        writer.write(b"220 mail.test ESMTP\r\n")
        while line := (await reader.readline()).decode().strip():
            verb, answer = line.upper().split(" ")[0].split(":")[0], b"250 OK\r\n"
            if verb == "EHLO":
                more = b"250-STARTTLS\r\n" if self.tls is not None and not secure else b""
                answer = b"250-mail.test\r\n" + more + b"250-AUTH PLAIN\r\n250 SIZE\r\n"
            elif verb == "STARTTLS" and self.tls is not None:
                writer.write(b"220 go ahead\r\n")
                await writer.start_tls(self.tls)
                secure = True
                continue
            elif verb == "AUTH":
                self.logins.append((line, secure))
                answer = b"235 welcome\r\n"
            elif verb == "MAIL":
                sender, recipients = line.partition("<")[2].partition(">")[0], []
            elif verb == "RCPT":
                address = line.partition("<")[2].partition(">")[0]
                if address in self.unknown:
                    answer = b"550 nobody here\r\n"
                else:
                    recipients.append(address)
            elif verb == "DATA":
                writer.write(b"354 go on\r\n")
                text = (await reader.readuntil(b"\r\n.\r\n"))[:-3]
                if self.refusals:
                    answer = self.refusals.pop(0)
                else:
                    self.messages.append(message_from_bytes(text, policy=policy.default))
                    self.envelopes.append((sender, tuple(recipients)))
            elif verb == "QUIT":
                writer.write(b"221 bye\r\n")
                return
            writer.write(answer)


@contextlib.asynccontextmanager
async def mail_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[Mailbox]:
    box = Mailbox(tls)
    server = await asyncio.start_server(box.serve, "127.0.0.1", 0)
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield box
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)
