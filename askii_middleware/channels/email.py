"""Alerts by e-mail."""

from __future__ import annotations

import logging
import smtplib
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from hashlib import blake2b

from askii_middleware.errors import ConfigurationError

from ..log_fields import fields
from .base import AlertNotice, OneThread

logger = logging.getLogger("askii_middleware.delivery")

TLS_PORT = 465
"""Where the connection itself is TLS (RFC 8314)."""
SUBMISSION_PORT = 587


class EmailChannel:
    """Sends each alert as a plain-text message to all recipients, through an SMTP server.

    Args:
        to: the recipients' addresses.
        host, port: the SMTP server. Port 465 speaks TLS from the start.
        from_: the sender's address.
        starttls: ask for TLS before anything is said, and send nothing without it. None: on port 587.
        user, password: for servers that want them; only ever sent through TLS.
        timeout_s: for each step of the exchange.
        clock: Unix seconds, for the date of the message.
    """

    def __init__(
        self,
        to: Sequence[str],
        *,
        host: str,
        port: int = SUBMISSION_PORT,
        from_: str,
        starttls: bool | None = None,
        user: str | None = None,
        password: str | None = None,
        timeout_s: float = 10.0,
        name: str = "email",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._to = tuple(_address(name, text) for text in to)
        if not self._to:
            raise ConfigurationError(f"alert channel {name!r}: it needs at least one recipient")
        self._from = _address(name, from_)
        if not host:
            raise ConfigurationError(f"alert channel {name!r}: it needs the SMTP server's host")
        self._host, self._port = host, port
        self._starttls = port == SUBMISSION_PORT if starttls is None else starttls
        if (user is None) != (password is None):
            raise ConfigurationError(f"alert channel {name!r}: user and password come together")
        if user is not None and not self._starttls and port != TLS_PORT:
            raise ConfigurationError(
                f"alert channel {name!r}: a password is sent through TLS only: use starttls or port {TLS_PORT}"
            )
        self._login = None if user is None or password is None else (user, password)
        self._timeout_s = timeout_s
        self._clock = clock
        self._thread = OneThread()

    async def send(self, alert: AlertNotice) -> None:
        message = self.message(alert)
        await self._thread.run(lambda: self._submit(message))

    def message(self, alert: AlertNotice) -> EmailMessage:
        """The message for an alert. Its id is the alert's at every try, so that mailboxes can tell doubles."""
        message = EmailMessage()
        message["Subject"] = f"Budget {alert.headline}"
        message["From"] = self._from
        message["To"] = self._to
        message["Date"] = format_datetime(datetime.fromtimestamp(self._clock(), UTC))
        digest = blake2b(alert.id.encode(), digest_size=16).hexdigest()
        message["Message-ID"] = f"<askii-alert-{digest}@{self._from.domain}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
        message.set_content(f"{alert.text}\n\nalert {alert.id}, {alert.timestamp}\n")
        return message

    def _submit(self, message: EmailMessage) -> None:
        with self._connected() as smtp:
            if self._starttls and self._port != TLS_PORT:
                smtp.starttls(context=ssl.create_default_context())
            if self._login is not None:
                smtp.login(*self._login)
            for address, (code, answer) in smtp.send_message(message).items():
                # The others have it: to send it again for this one would double it for them.
                logger.error(
                    "alert channel %s: %s was refused: %d %s",
                    self.name,
                    address,
                    code,
                    answer.decode(errors="replace"),
                    extra=fields("alert_refused", channel=self.name, code=code),
                )

    def _connected(self) -> smtplib.SMTP:
        if self._port == TLS_PORT:
            context = ssl.create_default_context()
            return smtplib.SMTP_SSL(self._host, self._port, timeout=self._timeout_s, context=context)
        return smtplib.SMTP(self._host, self._port, timeout=self._timeout_s)


def _address(name: str, text: str) -> Address:
    """A bare address. Raises ConfigurationError for anything else, such as one with a line break in it."""
    try:
        address = Address(addr_spec=text)
        if address.username and address.domain and str(address) == text and text.isprintable():
            return address
    except (ValueError, IndexError, MessageError):  # what the standard library's parser raises, depending on the text
        pass
    raise ConfigurationError(f"alert channel {name!r}: {text!r} is no e-mail address such as ops@example.com")
