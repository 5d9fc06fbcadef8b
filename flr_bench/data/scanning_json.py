"""Going through JSON lines."""

from __future__ import annotations

import io
import json
from typing import NoReturn

from flr_bench.data.field_values import rename_hint, short
from flr_bench.data.scanner import Scanner, arrow_type


class JsonLinesScanner(Scanner):
    """One JSON object a line."""

    def is_clean(self, lines: bytes) -> bool:
        """Whether Arrow reads every line and sees nothing unusual."""
        import pyarrow as pa
        import pyarrow.json as pj

        if not lines:
            return True
        try:
            lines.decode("utf-8")
            schema = pa.schema([(column.name, arrow_type(column)) for column in self._layout.columns])
            table = pj.read_json(
                io.BytesIO(lines),
                pj.ReadOptions(block_size=len(lines) + 1),
                pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        except (UnicodeDecodeError, pa.ArrowInvalid):
            return False
        return table.num_rows == lines.count(b"\n") and self.arrow_is_clean(table)

    def take_apart(self, lines: bytes, last: bool) -> bytes:
        """Look at the objects one by one."""
        del last  # a record never goes on in the next line
        for line in lines.split(b"\n")[:-1]:
            self._object(self.decoded(line, self._line))
            self._line += 1
        return b""

    def _object(self, text: str) -> None:
        if not text.strip():
            self.report("the line is empty", "remove it", "empty line", line=self._line, severity="note")
            return
        try:
            record = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            self._broken(text, error)
            return
        if not isinstance(record, dict):
            self.report(
                f"{short(record)} is not an object",
                "write one object in braces a line",
                "broken JSON",
                line=self._line,
            )
            return
        self._records += 1
        for column in self._layout.columns:
            if column.name not in record and column.required and column.missing == "error":
                self.report(
                    f"there is no field '{column.name}'",
                    rename_hint(column.name, list(record)),
                    "missing field",
                    line=self._line,
                    column=column.name,
                )
            elif column.name in record or column.required:
                self.value(column, record.get(column.name), self._line)
        self.see(record, self._line)

    def _broken(self, text: str, error: Exception) -> None:
        if text.lstrip().startswith(("{'", "{u'")):
            self.report(
                "a Python literal, not JSON",
                "convert the file to JSON lines (the older release of this data is written so); it is never evaluated",
                "Python literal",
                line=self._line,
            )
            return
        column = error.colno if isinstance(error, json.JSONDecodeError) else None
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        self.report(f"not JSON ({reason})", "mend or remove the line", "broken JSON", line=self._line, column=column)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
