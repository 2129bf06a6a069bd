"""``carbs export`` and ``carbs dashboard``: a sweep's trials, in other hands."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carbs.launchers.cli.terminal import PLAIN, console, working
from carbs.launchers.cli.where import FolderOption, StorageOption, WhereArgument, find
from carbs.launchers.errors import FolderError, MissingPackageError

if TYPE_CHECKING:
    import pandas as pd


def export(
    where: WhereArgument = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A .csv or .parquet file; else CSV is printed."),
    ] = None,
    folder: FolderOption = None,
    storage: StorageOption = None,
) -> None:
    """All trials as a table, one row each: parameters, predictions, results, metrics."""
    if output is not None and output.suffix not in (".csv", ".parquet"):
        raise typer.BadParameter(f"{output}: expected a file that ends in .csv or .parquet")
    with working("reading the trials"):
        from carbs.analysis import trials_frame
        from carbs.launchers.controller.answers import read_seal, with_unsealed

        sweep = find(where, folder, storage)
        trials = with_unsealed(trials_frame(sweep.study, sweep.space), read_seal(sweep))
        if output is not None:
            _write(trials, output)
    if output is None:
        trials.to_csv(sys.stdout, index=False)
    else:
        console.print(f"{len(trials)} trials: {output}", **PLAIN)


def _write(trials: pd.DataFrame, output: Path) -> None:
    """In one step, so that whoever reads the file finds the old one or the new."""
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        if output.suffix == ".csv":
            trials.to_csv(temporary, index=False)
        else:
            _of_one_type(trials).to_parquet(temporary, index=False)
        temporary.replace(output)
    except ImportError:
        raise MissingPackageError(
            "Parquet files need pyarrow: pip install 'carbs-search[parquet]', or export to .csv"
        ) from None
    except OSError as error:
        raise FolderError(f"cannot write {output}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _of_one_type(trials: pd.DataFrame) -> pd.DataFrame:
    """Columns that hold numbers and words, such as a choice of both, become words."""

    def as_words(column: pd.Series) -> pd.Series:
        kinds = {type(value) for value in column.dropna()}
        if column.dtype != object or len(kinds) < 2 or kinds <= {int, float}:
            return column
        return column.map(lambda value: value if value is None else str(value))

    return trials.apply(as_words)


def dashboard(
    where: WhereArgument = None,
    host: Annotated[
        str, typer.Option(help="To listen on. Whoever reaches it may change the study.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8080,
    folder: FolderOption = None,
    storage: StorageOption = None,
) -> None:
    """Open optuna-dashboard on a sweep's study, while it runs or afterwards. Ctrl-C ends it."""
    with working("opening the study"):
        try:
            from optuna_dashboard import wsgi
        except ImportError:
            raise MissingPackageError(
                "the dashboard is optuna-dashboard: pip install 'carbs-search[dashboard]'"
            ) from None
        sweep = find(where, folder, storage)
        application = wsgi(sweep.study._storage)
    try:
        server = _server(application, host, port)
    except OSError as error:
        raise FolderError(
            f"cannot listen on {host}:{port} ({error.strerror}): give another --port, or --port 0"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    console.print(
        f"dashboard: http://{shown}:{server.server_port}/dashboard/studies/"
        f"{sweep.study._study_id}\n"
        "Ctrl-C ends it; the sweep goes on.",
        **PLAIN,
    )
    # Also where a shell that started it in the background had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


def _server(application: Any, host: str, port: int) -> Any:
    """Of the standard library, a thread for each request, without a line for each."""
    import socket
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    class Handler(WSGIRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def address_string(self) -> str:  # without asking a name server
            return str(self.client_address[0])

    return make_server(host, port, application, server_class=Server, handler_class=Handler)


def add_commands(app: typer.Typer) -> None:
    """Both, under their names."""
    app.command("export")(export)
    app.command("dashboard")(dashboard)
