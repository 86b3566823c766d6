"""Every setting of the product, read once from the environment.

All names read here are listed in README's Configuration; a test holds the two together.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
from csp.constants import NONCE, NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError

from workers.contract.chat_connections import parse_address
from workers.contract.judge import Endpoint

BASE_DIR = Path(__file__).resolve().parent.parent


class Environment(environ.Env):  # type: ignore[misc]
    """Names the variable in the error when its value cannot be parsed."""

    def get_value(self, var: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().get_value(var, *args, **kwargs)
        except ValueError as error:
            raise ImproperlyConfigured(
                f"{var} is set to {os.environ.get(var)!r}, which cannot be read."
            ) from error


env = Environment()

# Files ---------------------------------------------------------------------------------------------------

DATA_DIR = Path(env.str("DATA_DIR", default=str(BASE_DIR / ".graftworks"))).expanduser().resolve()
BUNDLED_MODEL_DIR = (
    Path(env.str("BUNDLED_MODEL_DIR", default=str(BASE_DIR / ".cache" / "bundled" / "SmolLM2-135M-Instruct")))
    .expanduser()
    .resolve()
)
UPLOAD_DIR = DATA_DIR / "uploads"
# Per data folder: a second installation from this checkout must not change a running one.
STATIC_ROOT = DATA_DIR / "static"
try:
    for folder in (DATA_DIR, UPLOAD_DIR, DATA_DIR / "run", STATIC_ROOT):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
except OSError as error:
    raise ImproperlyConfigured(
        f"DATA_DIR {DATA_DIR} cannot be created ({error.strerror}). Set it to a folder that you may write to."
    ) from error
# Django spools request bodies to TMPDIR before any view runs; a small tmpfs there would fill up.
os.environ.setdefault("TMPDIR", str(UPLOAD_DIR))
FILE_UPLOAD_TEMP_DIR = str(UPLOAD_DIR)
FILE_UPLOAD_HANDLERS = ["django.core.files.uploadhandler.TemporaryFileUploadHandler"]
FILE_UPLOAD_PERMISSIONS = 0o640
UPLOAD_LIMIT_BYTES = env.int("UPLOAD_LIMIT_BYTES", default=2 * 1024**3)
BODY_LIMIT_BYTES = 1024**2
DATA_UPLOAD_MAX_MEMORY_SIZE = BODY_LIMIT_BYTES


def _secret_key() -> str:
    """Return the key from the environment, or create one in DATA_DIR that only its owner can read."""
    given = env.str("SECRET_KEY", default="")
    if given:
        return str(given)
    path = DATA_DIR / "secret_key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text()
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(64))
    return path.read_text()


SECRET_KEY = _secret_key()
DEBUG = False

# Addresses -----------------------------------------------------------------------------------------------

# The address that users open, for example https://graftworks.example.org. Unset: loopback.
PUBLIC_URL = env.str("PUBLIC_URL", default="").rstrip("/")
_public = urlsplit(PUBLIC_URL)
if PUBLIC_URL and (_public.scheme not in ("http", "https") or not _public.hostname):
    raise ImproperlyConfigured("PUBLIC_URL must look like https://graftworks.example.org")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
if _public.hostname:
    ALLOWED_HOSTS.append(_public.hostname)
    CSRF_TRUSTED_ORIGINS = [f"{_public.scheme}://{_public.netloc}"]
HTTPS = _public.scheme == "https"
# Where `manage.py start` listens. Beyond loopback it insists on an https PUBLIC_URL or on ALLOW_PLAIN_HTTP.
HOST = env.str("HOST", default="127.0.0.1")
PORT = env.int("PORT", default=8000)
ALLOW_PLAIN_HTTP = env.bool("ALLOW_PLAIN_HTTP", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_NAME = "__Host-session" if HTTPS else "session"
CSRF_COOKIE_NAME = "__Host-csrf" if HTTPS else "csrf"
SESSION_COOKIE_AGE = 14 * 24 * 3600
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SECURE_SSL_REDIRECT = HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
# Number of trusted proxies in front of the server; sign-in limits use the client's address.
ALLAUTH_TRUSTED_PROXY_COUNT = env.int("TRUSTED_PROXY_COUNT", default=0)

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF, NONCE],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
        "form-action": [SELF],
        "object-src": [NONE],
    }
}

# Application ---------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "dashboard",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.forms",
    "allauth",
    "allauth.account",
    "django_htmx",
    "csp",
    "ninja",
]
MIDDLEWARE = [
    "dashboard.compression.CompressionMiddleware",
    "dashboard.openai_errors.middleware",
    "csp.middleware.CSPMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "dashboard.compression.EtagMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "dashboard.gate.GateMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "dashboard.urls"
ASGI_APPLICATION = "dashboard.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "csp.context_processors.nonce",
                "dashboard.gate.frame",
            ],
            "libraries": {"i18n": "dashboard.templatetags.sentences"},
        },
    }
]
# The library above replaces Django's on purpose.
SILENCED_SYSTEM_CHECKS = ["templates.W003"]
FORM_RENDERER = "dashboard.forms.rendering.Renderer"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Database and cache --------------------------------------------------------------------------------------

DATABASES = {"default": env.db("DATABASE_URL", default=f"sqlite:///{DATA_DIR / 'db.sqlite3'}")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # Two deferred transactions that start to write deadlock; immediate ones wait for each other.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        # Without a limit the write-ahead log keeps the size of its longest time. No statistics of the tables
        # (PRAGMA optimize): with them SQLite chooses worse indices. At 10,850 runs Home then took 53 instead
        # of 38 ms of a processor, the queue 46 instead of 25, and no page less.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; "
        "PRAGMA journal_size_limit=16000000",
    }
    # A file even in tests: worker and dispatcher processes share it.
    DATABASES["default"]["TEST"] = {"NAME": str(DATA_DIR / "test.sqlite3")}
else:
    DATABASES["default"]["ENGINE"] = "dashboard.postgresql"
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    # Detect a lost server within seconds, on connecting and while waiting for a result.
    DATABASES["default"]["OPTIONS"] = {
        "connect_timeout": 2,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        # A suspended worker must not keep a job's row locked, and a wait for a lock ends as on SQLite.
        # Compiling a page's queries takes longer than running them.
        "options": "-c idle_in_transaction_session_timeout=30s -c lock_timeout=20s -c jit=off",
        **DATABASES["default"].get("OPTIONS", {}),
    }
# Sign-in limits must work while the broker is down, and must count across processes.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "cache",
        # A full cache drops live entries, for example sign-in attempts. Django's default is 300.
        "OPTIONS": {"MAX_ENTRIES": 100_000},
    },
    # Parts of pages, some 50 kB each, in each process; their keys change with what they show.
    "rendered": {
        "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
        "TIMEOUT": 3600,
        "OPTIONS": {"MAX_ENTRIES": 100},
    },
}

# The broker's address; unset means the embedded Valkey on a private socket.
REDIS_URL = env.str("REDIS_URL", default="")
BROKER_SOCKET = Path(env.str("BROKER_SOCKET", default=str(DATA_DIR / "run" / "valkey.sock")))
BROKER_URL = REDIS_URL or f"redis+socket://{BROKER_SOCKET}?virtual_host=0"

# Accounts ------------------------------------------------------------------------------------------------

AUTH_USER_MODEL = "dashboard.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
PASSWORD_HASHERS = [
    "dashboard.password_hashing.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "home"
ACCOUNT_ADAPTER = "dashboard.gate.AccountAdapter"
ACCOUNT_FORMS = {
    "login": "dashboard.forms.accounts.sign_in.LoginForm",
    "change_password": "dashboard.forms.accounts.sign_in.ChangePasswordForm",
    "set_password": "dashboard.forms.accounts.sign_in.SetPasswordForm",
    "reset_password": "dashboard.forms.accounts.sign_in.ResetPasswordForm",
    "reset_password_from_key": "dashboard.forms.accounts.sign_in.ResetPasswordKeyForm",
}
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_LOGOUT_REDIRECT_URL = "account_login"
ACCOUNT_PREVENT_ENUMERATION = True
# Sessions are always remembered, and unknown addresses get no email.
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_EMAIL_UNKNOWN_ACCOUNTS = False
ACCOUNT_EMAIL_SUBJECT_PREFIX = "[Graftworks] "
ACCOUNT_RATE_LIMITS = {"login_failed": "10/m/ip,5/15m/key"}
vars().update(env.email("EMAIL_URL", default="consolemail://"))
DEFAULT_FROM_EMAIL = env.str("DEFAULT_FROM_EMAIL", default="graftworks@localhost")

# Language, time, files served ----------------------------------------------------------------------------

LANGUAGE_CODE = "en"
# Looking up sentences in catalogs, of which English has none, took a tenth of each page's time.
USE_I18N = False
TIME_ZONE = env.str("TIME_ZONE", default="UTC")
USE_TZ = True
STATIC_URL = "/static/"
# Named folders, so that node_modules and lock files beside them are never published.
STATICFILES_DIRS = [
    (name, BASE_DIR / "static" / name)
    for name in ("css", "js", "img", "examples", "vendor")
    if (BASE_DIR / "static" / name).is_dir()
]
# Set by `manage.py start` after it collects the files; otherwise they are served from their folders.
STATIC_MANIFEST = env.bool("STATIC_MANIFEST", default=False)
WHITENOISE_USE_FINDERS = not STATIC_MANIFEST
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "dashboard.compression.StaticFilesStorage"
        if STATIC_MANIFEST
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}

# Work ----------------------------------------------------------------------------------------------------

# Trainings at once on a machine without a GPU, and OpenMP threads of each; 0 divides the cores among them.
CPU_TRAININGS = max(1, env.int("CPU_TRAININGS", default=min(2, len(os.sched_getaffinity(0)))))
ENGINE_THREADS = env.int("ENGINE_THREADS", default=0)
# Minutes for which an idle worker keeps a process with the engine's libraries loaded; 0: it never does.
ENGINE_PRELOAD_MINUTES = env.int("ENGINE_PRELOAD_MINUTES", default=15)
# Limits of an inference job: answers at a time, tokens of all of them together, adapters in memory, and the
# minutes without a request after which it ends and frees the base model's memory.
INFERENCE_ROWS = env.int("INFERENCE_ROWS", default=16)
INFERENCE_TOKENS = env.int("INFERENCE_TOKENS", default=16_384)
INFERENCE_ADAPTERS = env.int("INFERENCE_ADAPTERS", default=32)
INFERENCE_IDLE_MINUTES = env.int("INFERENCE_IDLE_MINUTES", default=10)
# The address of this machine at which its inference jobs answer web processes on other machines.
INFERENCE_LISTEN = env.str("INFERENCE_LISTEN", default="")
try:
    parse_address(INFERENCE_LISTEN or "unset")
except ValueError as error:
    raise ImproperlyConfigured("INFERENCE_LISTEN must look like 10.0.0.5 or 10.0.0.5:7000.") from error
# Time in which ended runs can be resumed and exports downloaded, and limits of age and size for logs.
KEEP_CHECKPOINTS_DAYS = env.int("KEEP_CHECKPOINTS_DAYS", default=14)
KEEP_EXPORTS_DAYS = env.int("KEEP_EXPORTS_DAYS", default=7)
KEEP_LOGS_DAYS = env.int("KEEP_LOGS_DAYS", default=90)
LOG_LIMIT_BYTES = env.int("LOG_LIMIT_BYTES", default=10 * 1024**2)
# Pages of an offline installation offer no push to the hub.
HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
# The judge. Unset, no answers leave the installation. Only workers use the key; the database, logs, pages and
# the engine's environment never contain it.
JUDGE = Endpoint(
    env.str("JUDGE_URL", default=""),
    env.str("JUDGE_MODEL", default=""),
    env.str("JUDGE_API_KEY", default="").strip(),
)
# A server such as vLLM that answers for one base model instead of an inference job.
INFERENCE_SERVER = Endpoint(
    env.str("INFERENCE_SERVER_URL", default=""),
    env.str("INFERENCE_SERVER_MODEL", default=""),
    env.str("INFERENCE_SERVER_API_KEY", default="").strip(),
)
for name, endpoint in (("JUDGE", JUDGE), ("INFERENCE_SERVER", INFERENCE_SERVER)):
    if problem := endpoint.find_problem(name):
        raise ImproperlyConfigured(problem)
# Hosts, with their port if it is not the usual one, that webhooks may be sent to.
WEBHOOK_HOSTS = frozenset(
    host.strip().lower() for host in env.list("WEBHOOK_HOSTS", default=[]) if host.strip()
)
# Web processes of `manage.py start`; uvicorn reads the same name.
WEB_CONCURRENCY = env.int("WEB_CONCURRENCY", default=min(4, len(os.sched_getaffinity(0))))
# Requests that a web process works on at the same time; further ones wait, and many of them get a 503.
REQUESTS_AT_A_TIME = env.int("REQUESTS_AT_A_TIME", default=4)
# Reads and writes per minute and token.
API_READS_PER_MINUTE = env.int("API_READS_PER_MINUTE", default=600)
API_WRITES_PER_MINUTE = env.int("API_WRITES_PER_MINUTE", default=60)


def _without_secrets(record: logging.LogRecord) -> bool:
    """Remove secrets from logged addresses of invitations, password resets, reports and try-out links."""
    if isinstance(record.args, tuple):
        key = re.compile(r"^/(invitations|password-reset|shared|try)/[^/]+")
        record.args = tuple(
            key.sub(r"/\1/…", value) if isinstance(value, str) else value for value in record.args
        )
    return True


def _without_outage(record: logging.LogRecord) -> bool:
    """Log one line per request without a traceback while the database is unreachable."""
    if record.exc_info and isinstance(record.exc_info[1], OperationalError | InterfaceError):
        record.exc_info = None
    return True


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        "without_secrets": {"()": lambda: _without_secrets},
        "without_outage": {"()": lambda: _without_outage},
    },
    "formatters": {"plain": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        name: {"filters": ["without_secrets", "without_outage"]}
        for name in ("django.request", "django.security.csrf")
    },
    "root": {"handlers": ["console"], "level": "INFO"},
}
