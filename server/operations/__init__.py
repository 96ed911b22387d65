"""What an operator decides about a server: who may call, and over which connections. Knows neither gRPC nor models.

security        Security: certificates, tokens and the rest of transport security, checked before the server listens
certificates    CertificateFiles: the certificate, the key and the clients' authority, read again when they change
tokens          TokenFile: bearer tokens with names and limits, read again when the file changes
identities      Identity: the name of a client, from a token or a certificate, with limits
watched_files   whether files have changed
watchdog        Watchdog: whether an engine's thread goes on, and what it does
"""

from .certificates import CertificateFiles, Certificates
from .identities import Identity
from .security import Security, SecurityError, make_security
from .tokens import TokenFile
from .watchdog import RESTING, Activity, Phase, Watchdog

__all__ = [
    "RESTING",
    "Activity",
    "CertificateFiles",
    "Certificates",
    "Identity",
    "Phase",
    "Security",
    "SecurityError",
    "TokenFile",
    "Watchdog",
    "make_security",
]
