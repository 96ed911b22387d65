"""What operators decide about a server, and what they see of it. The ground floor: knows neither gRPC nor models.

security        Security: certificates, tokens and the rest of transport security, checked before the server listens
certificates    CertificateFiles: the certificate, the key and the clients' authority, read again when they change
tokens          TokenFile: bearer tokens with names and limits, read again when the file changes
identities      Identity: the name of a client, from a token or a certificate, with limits
watched_files   whether files have changed
metrics         plain counters of methods and models, which cost their callers no lock
exposition      the counters as Prometheus' metrics
metrics_server  the port that Prometheus reads from
telemetry       spans and metrics for OpenTelemetry, where an endpoint is configured
call_context    observe_call: counts a call and records its span; the ids of the call that a task answers
limits          CallLimits and ModelLimits: what operators limit
logs            the log as lines of text or as JSON
watchdog        Watchdog: whether an engine's thread goes on, and what it does
"""

from .call_context import CallContext, as_current, current_call, observe_call
from .certificates import CertificateFiles, Certificates
from .identities import Identity
from .limits import CallLimits, ModelLimits
from .logs import LogOptions, configure_log, log_text
from .metrics import MethodMetrics, ModelLoad, ModelMetrics
from .metrics_server import MetricsAddressError, MetricsServer
from .security import Security, SecurityError, make_security
from .telemetry import CallTrace, RequestTimes, Telemetry, TelemetryError, make_telemetry
from .tokens import TokenFile
from .watchdog import RESTING, Activity, Phase, Watchdog

__all__ = [
    "RESTING",
    "Activity",
    "CallContext",
    "CallLimits",
    "CallTrace",
    "CertificateFiles",
    "Certificates",
    "Identity",
    "LogOptions",
    "MethodMetrics",
    "MetricsAddressError",
    "MetricsServer",
    "ModelLimits",
    "ModelLoad",
    "ModelMetrics",
    "Phase",
    "RequestTimes",
    "Security",
    "SecurityError",
    "Telemetry",
    "TelemetryError",
    "TokenFile",
    "Watchdog",
    "as_current",
    "configure_log",
    "current_call",
    "log_text",
    "make_security",
    "make_telemetry",
    "observe_call",
]
