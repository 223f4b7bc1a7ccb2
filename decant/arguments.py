"""A verb's command line, derived from its config: one flag per scalar field, `--set` for everything."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from decant.config import Config, config_class, load_config


def parse(cls: type[Config], arguments: Sequence[str], *, verb: str, summary: str) -> Any:
    """The verb's config from its command line."""
    parser = build_parser(cls, verb=verb, summary=summary)
    given = vars(parser.parse_args(arguments))
    file, sets = given.pop("config_file"), given.pop("set")
    values = {key: value for key, value in given.items() if value is not None}
    if cls.set_field is not None:
        return load_config(cls, file=file, values={**values, cls.set_field: tuple(sets)} if sets else values)
    return load_config(cls, file=file, sets=sets, values=values)


def build_parser(cls: type[Config], *, verb: str, summary: str) -> argparse.ArgumentParser:
    """An argument parser with the config's positional fields and a flag for each of its scalar fields."""
    parser = argparse.ArgumentParser(
        prog=f"decant {verb}", description=summary, allow_abbrev=False, argument_default=None
    )
    parser.add_argument("--config", dest="config_file", type=Path, metavar="FILE", help="TOML or JSON file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set any key, dotted")
    for field_name, field in cls.model_fields.items():
        if field_name in cls.positional:
            parser.add_argument(field_name, nargs="?", metavar=field_name.upper(), help=_help(field))
        elif config_class(field.annotation) is None and not _is_many(field.annotation):
            _add_flag(parser, field.alias or field_name, field)
    tables = [n for n, f in cls.model_fields.items() if config_class(f.annotation) is not None]
    if tables:
        parser.epilog = f"tables (in the file, or --set {tables[0]}.key=value): {', '.join(tables)}"
    return parser


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    flag = f"--{name.replace('_', '-')}"
    if bool in _members(field.annotation):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, dest=name, help=_help(field))
        return
    metavar = name.rpartition("_")[2].upper()
    parser.add_argument(flag, dest=name, metavar=metavar, help=_help(field))


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    choices = [str(c) for m in _members(field.annotation) if get_origin(m) is Literal for c in get_args(m)]
    if choices:
        text += f" ({' | '.join(choices)})"
    if not field.is_required() and field.default not in (None, "", ()):
        text += f" [{field.default}]"
    return text.replace("%", "%%")


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_many(annotation: Any) -> bool:
    return any(get_origin(member) in (list, tuple, dict) for member in _members(annotation))
