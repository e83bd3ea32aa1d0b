"""Alerts through a real SMTP connection."""

from __future__ import annotations

import asyncio
import logging
import smtplib
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from askii_middleware.channels import EmailChannel
from askii_middleware.errors import ConfigurationError

from ..support.smtp import Mailbox, mail_server
from .support import NOW_S, notice

TO = ("ops@example.com", "boss@example.com")


def channel(box: Mailbox, **options: Any) -> EmailChannel:
    given = {"host": "127.0.0.1", "port": box.port, "from_": "billing@example.com", "clock": lambda: NOW_S}
    return EmailChannel(TO, **{**given, **options})


async def test_an_alert_is_one_message_to_all_recipients() -> None:
    async with mail_server() as box:
        await channel(box).send(notice(5))
    assert box.envelopes == [("billing@example.com", TO)]
    (message,) = box.messages
    assert message["Subject"] == "Budget warning: tenant=acme has spent 90 % of its daily budget"
    assert (message["From"], message["To"]) == ("billing@example.com", ", ".join(TO))
    assert message["Date"] == "Thu, 01 Jan 2026 00:00:00 +0000"
    assert message["Auto-Submitted"] == "auto-generated"
    assert (
        message.get_content().replace("\r\n", "\n")
        == f"{notice(5).text}\n\nalert {notice(5).id}, 2026-01-01T01:00:00Z\n"
    )


async def test_the_same_alert_has_the_same_message_id_at_every_try_and_another_one_another() -> None:
    async with mail_server() as box:
        box.refusals = [b"451 try later\r\n", b"421 closing\r\n"]
        for _ in range(2):
            with pytest.raises(smtplib.SMTPException):
                await channel(box).send(notice(1))
        await channel(box).send(notice(1))
        await channel(box).send(notice(1))
        await channel(box).send(notice(2))
    first, again, other = (message["Message-ID"] for message in box.messages)
    assert first == again != other
    assert first.startswith("<askii-alert-")
    assert first.endswith("@example.com>")


async def test_one_recipient_that_is_refused_does_not_double_the_message_for_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mail_server() as box:
        box.unknown = {"boss@example.com"}
        await channel(box).send(notice())
        assert box.envelopes == [("billing@example.com", ("ops@example.com",))]
        box.unknown = set(TO)
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            await channel(box).send(notice())
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "boss@example.com was refused: 550" in line.getMessage()


async def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    async with mail_server() as box:
        box.silent = True
        async with asyncio.timeout(10):
            with pytest.raises(smtplib.SMTPServerDisconnected, match="timed out"):
                await channel(box, timeout_s=0.1).send(notice())


async def test_where_tls_is_asked_for_nothing_is_sent_without_it() -> None:
    async with mail_server() as box:
        with pytest.raises(smtplib.SMTPNotSupportedError, match="STARTTLS"):
            await channel(box, starttls=True, user="u", password="p").send(notice())
    assert (box.messages, box.logins) == ([], [])


async def test_through_tls_the_password_is_sent_and_a_server_that_is_another_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = self_signed(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with mail_server(tls) as box:
        secure = channel(box, starttls=True, user="u", password="p")
        with pytest.raises(ssl.SSLCertVerificationError):
            await secure.send(notice())
        assert (box.messages, box.logins) == ([], [])
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        await secure.send(notice())
        assert (len(box.messages), [through_tls for _, through_tls in box.logins]) == (1, [True])


def self_signed(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    path = folder / "server.pem"
    path.write_bytes(secret + certificate.public_bytes(encoding))
    return path


def test_tls_is_the_default_on_the_submission_port() -> None:
    assert EmailChannel(TO, host="h", from_="a@example.com")._starttls
    assert not EmailChannel(TO, host="h", port=25, from_="a@example.com")._starttls


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nobody",
        "a@b\r\nBcc: evil@example.com",
        "a@b\nX: y",
        "a@b, c@d",
        "Ann <a@b.example>",
        "a@",
        "@b",
        "a b@c.example",
    ],
)
def test_an_address_that_could_become_a_header_of_its_own_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="no e-mail address"):
        EmailChannel([address], host="h", from_="a@example.com")
    with pytest.raises(ConfigurationError, match="no e-mail address"):
        EmailChannel(["a@example.com"], host="h", from_=address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": ""}, "host"),
        ({"user": "u"}, "come together"),
        ({"user": "u", "password": "p", "port": 25}, "TLS only"),
        ({"user": "u", "password": "p", "starttls": False}, "TLS only"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EmailChannel(TO, **{"host": "h", "from_": "a@example.com", **options})
    with pytest.raises(ConfigurationError, match="at least one recipient"):
        EmailChannel([], host="h", from_="a@example.com")
