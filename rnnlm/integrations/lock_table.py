"""Leases as rows of the tracking database, for stores that cannot create a file exclusively, such as object stores.

A row is to a lease what a file is in a local folder: it is inserted only where none is (`rnnlm/batch/lease.py`).
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from rnnlm.errors import UnreachableError

TABLE = "rnnlm_leases"
_WAIT_S = 30
"""Seconds that SQLite waits for another writer."""


class LockTable:
    """The table of leases in a database; it is made where it is not there yet.

    Args:
        uri: as SQLAlchemy and MLflow know it, `sqlite:///PATH` or `postgresql://...`.

    Raises:
        UnreachableError: the database does not answer.
    """

    def __init__(self, uri: str) -> None:
        self._leases = sa.Table(
            TABLE,
            sa.MetaData(),
            sa.Column("name_digest", sa.String(64), primary_key=True),
            sa.Column("name", sa.Text, nullable=False),
            sa.Column("holder", sa.Text, nullable=False),
        )
        database = make_url(uri).database
        with self._reaching():
            if uri.startswith("sqlite") and database:
                Path(database).parent.mkdir(parents=True, exist_ok=True)
            arguments = {"timeout": _WAIT_S} if uri.startswith("sqlite") else {}
            self._engine = sa.create_engine(uri, connect_args=arguments, poolclass=sa.NullPool)
            if not sa.inspect(self._engine).has_table(TABLE):
                with contextlib.suppress(SQLAlchemyError):  # somebody else may be making it
                    self._leases.create(self._engine)
                sa.inspect(self._engine).get_columns(TABLE)

    def slots(self, folder: str) -> "Rows":
        """The rows of one folder."""
        return Rows(self, folder)

    def run(self, statement: Any) -> Any:
        """Run a statement in a transaction of its own; the first row, or how many rows were changed.

        Raises:
            IntegrityError: the row to be inserted is there.
            UnreachableError: the database does not answer.
        """
        with self._reaching(), self._engine.begin() as connection:
            result = connection.execute(statement)
            return result.first() if result.returns_rows else result.rowcount

    @property
    def leases(self) -> sa.Table:
        """The table."""
        return self._leases

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except (SQLAlchemyError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UnreachableError(f"database of locks: {reason}") from error


class Rows:
    """The leases of one folder, with the calls that a store has.

    Args:
        table: where.
        folder: URI of the folder.
    """

    def __init__(self, table: LockTable, folder: str) -> None:
        self._table = table
        self._folder = folder

    def create(self, name: str, data: bytes) -> bool:
        """Insert a row; False where there is one."""
        values = {**self._key(name), "name": f"{self._folder}/{name}", "holder": data.decode()}
        try:
            self._table.run(sa.insert(self._table.leases).values(values))
        except IntegrityError:
            return False
        return True

    def read_bytes(self, name: str) -> bytes:
        """What a row holds.

        Raises:
            FileNotFoundError: there is none.
        """
        leases = self._table.leases
        row = self._table.run(sa.select(leases.c.holder).filter_by(**self._key(name)))
        if row is None:
            raise FileNotFoundError(name)
        return str(row[0]).encode()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Change a row; nothing happens where there is none."""
        self._table.run(sa.update(self._table.leases).filter_by(**self._key(name)).values(holder=data.decode()))

    def delete(self, name: str) -> None:
        """Delete a row, if there is one."""
        self._table.run(sa.delete(self._table.leases).filter_by(**self._key(name)))

    def _key(self, name: str) -> dict[str, str]:
        return {"name_digest": hashlib.sha256(f"{self._folder}/{name}".encode()).hexdigest()}
