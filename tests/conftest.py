"""What all tests share: one thread, repeatable examples, databases, and waiting without sleeping.

``CARBS_TEST_POSTGRES`` is the URL of a PostgreSQL server on which the tests may make databases, as
``tests/postgres/start.sh`` prints it. Without it they are skipped there; with
``CARBS_REQUIRE_POSTGRES=1`` they fail instead. So are those that open a page, without the Chromium
of ``tests/chromium/install.sh``, and with ``CARBS_REQUIRE_CHROMIUM=1``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
import torch
from hypothesis import settings
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from sqlalchemy.engine import make_url

# The same examples every time, and no deadline: the first example of a test pays for imports.
settings.register_profile("carbs", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("carbs")

POSTGRES = Path(__file__).parent / "postgres"
WaitUntil = Callable[[Callable[[], bool], str], None]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """``wait_until(condition, what)``: returns once it holds, or fails saying what never came."""

    def wait_until(condition: Callable[[], bool], what: str) -> None:
        nothing = threading.Event()
        deadline = time.monotonic() + 120
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited two minutes in vain for {what}")
            nothing.wait(0.005)

    return wait_until


@pytest.fixture(scope="session")
def postgres() -> str:
    """The URL of a running PostgreSQL server."""
    url = os.environ.get("CARBS_TEST_POSTGRES")
    if url is None:
        reason = "CARBS_TEST_POSTGRES names no server: tests/postgres/start.sh starts one"
        if os.environ.get("CARBS_REQUIRE_POSTGRES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return url


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a new database, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('database') / 'study.db'}"
        return
    server = request.getfixturevalue("postgres")
    name = f"test_{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    """A headless Chromium."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        reason = "there is no chromium, or no chromedriver: tests/chromium/install.sh installs both"
        if os.environ.get("CARBS_REQUIRE_CHROMIUM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    options = ChromeOptions()
    options.binary_location = program
    # What a page asks of the network is to fail at once, and not to be waited for.
    options.page_load_strategy = "eager"
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    # Root may not use the sandbox; a container's /dev/shm may be small.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def server(postgres: str) -> Iterator[Callable[..., str]]:
    """A PostgreSQL server of this test's own, to ``start.sh`` and ``stop.sh``; prints its URL."""
    # Not in tmp_path, which only its owner may enter: the server has a user of its own.
    root = Path(tempfile.mkdtemp(prefix="carbs-postgres-"))
    port = str((make_url(postgres).port or 5432) + 1)
    environment = {**os.environ, "POSTGRES_TEST_ROOT": str(root), "POSTGRES_TEST_PORT": port}

    def server(*command: str) -> str:
        done = subprocess.run(
            [POSTGRES / command[0], *command[1:]],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return done.stdout.strip()

    yield server
    if (root / "data" / "postmaster.pid").exists():
        server("stop.sh")
    shutil.rmtree(root)
