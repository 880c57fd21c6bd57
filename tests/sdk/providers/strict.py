"""Checks JSON against the types of an SDK, strictly: no key that the type does not have, at any
depth, nothing missing that it requires, and no text in place of a number.

The SDKs themselves are lenient. Their typed dictionaries check nothing, and their models keep or
drop what they do not know, so that an old client can read a new server's answers.
"""

import base64
import binascii
import collections.abc
import enum
import types
import typing

import pydantic
import typing_extensions

LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
MAPS = (dict, collections.abc.Mapping)
WRAPPERS = (typing.Required, typing.NotRequired, typing_extensions.ReadOnly)
SCALARS = {str: (str,), int: (int,), float: (int, float), bool: (bool,), type(None): (type(None),)}


def check(value, hint):
    """What is wrong with a value, as texts; none where it is of the type."""
    # Beside typed dictionaries, which requests are written in, an SDK takes the models of its
    # answers, which know more than a request may say.
    check = Check(is_typed=typing_extensions.is_typeddict(_unwrapped(hint)))
    return check.value(value, hint, "$")


class Check:
    def __init__(self, is_typed):
        self.is_typed = is_typed

    def value(self, value, hint, at):
        hint = _unwrapped(hint)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint in (typing.Any, object) or isinstance(hint, typing.TypeVar):
            return []
        if origin in (typing.Union, types.UnionType):
            return self.union(value, arguments, at)
        if origin is typing.Literal:
            is_one = any(type(value) is type(one) and value == one for one in arguments)
            return [] if is_one else [f"{at}: {value!r} is none of {arguments}"]
        if typing_extensions.is_typeddict(hint):
            return self.members(value, _members_of_typed_dict(hint), at)
        if isinstance(hint, type) and issubclass(hint, pydantic.BaseModel):
            if self.is_typed or hint.__name__ == "Unset":
                return [f"{at}: {value!r} is no {hint.__name__}"]
            return self.members(value, _members_of_model(hint), at)
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            is_one = value in [one.value for one in hint]
            return [] if is_one else [f"{at}: {value!r} is none of {hint.__name__}"]
        container = origin or hint
        if container in LISTS or getattr(container, "__name__", "") == "SequenceNotStr":
            if not isinstance(value, list):
                return [f"{at}: {value!r} is no list"]
            item = arguments[0] if arguments else typing.Any
            return [p for n, one in enumerate(value) for p in self.value(one, item, f"{at}[{n}]")]
        if container in MAPS:
            if not isinstance(value, dict):
                return [f"{at}: {value!r} is no object"]
            item = arguments[1] if arguments else typing.Any
            return [p for key, one in value.items() for p in self.value(one, item, f"{at}.{key}")]
        if hint is bytes:
            return [] if _is_base64(value) else [f"{at}: is no base64"]
        known = SCALARS.get(hint if hint is not None else type(None))
        is_flag = isinstance(value, bool) and hint is not bool
        if known and isinstance(value, known) and not is_flag:
            return []
        return [f"{at}: {value!r} is no {hint}"]

    def union(self, value, hints, at):
        """What is wrong with the value as one of the types: with the one that comes closest."""
        closest = None
        for hint in hints:
            problems = self.value(value, hint, at)
            if not problems:
                return []
            # One that goes wrong inside is closer than one that goes wrong at once.
            rank = (all(problem.startswith(f"{at}:") for problem in problems), len(problems))
            if closest is None or rank < closest[0]:
                closest = (rank, problems)
        return closest[1]

    def members(self, value, members, at):
        if not isinstance(value, dict):
            return [f"{at}: {value!r} is no object"]
        problems = [f"{at}.{key}: is not known" for key in value if key not in members]
        for key, (hint, is_required) in members.items():
            if key in value:
                problems += self.value(value[key], hint, f"{at}.{key}")
            elif is_required:
                problems.append(f"{at}.{key}: is missing")
        return problems


def _unwrapped(hint):
    while True:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        elif hasattr(hint, "__metadata__"):
            hint = hint.__origin__
        elif isinstance(hint, typing_extensions.TypeAliasType):
            hint = hint.__value__
        elif isinstance(origin, typing_extensions.TypeAliasType):
            hint = origin.__value__[arguments]
        elif origin in WRAPPERS:
            hint = arguments[0]
        else:
            return hint


def _members_of_typed_dict(kind):
    """By key: its type, and whether it is required. Where annotations are texts,
    `__required_keys__` does not know of `Required`, so the annotations themselves are asked."""
    members = {}
    hints = typing_extensions.get_type_hints(kind, include_extras=True)
    for key, hint in hints.items():
        origin = typing.get_origin(hint)
        is_required = origin is typing.Required or (
            key in kind.__required_keys__ and origin is not typing.NotRequired
        )
        members[key] = (hint, is_required)
    return members


def _members_of_model(kind):
    """By the key on the wire, which may have another name in Python."""
    kind.model_rebuild()
    members = {}
    for name, field in kind.model_fields.items():
        aliases = [getattr(one, "alias", None) for one in field.metadata]
        aliases = [field.serialization_alias, field.alias, *aliases, name]
        key = next(alias for alias in aliases if alias)
        members[key] = (field.annotation, field.is_required())
    return members


def _is_base64(value):
    """In either alphabet."""
    try:
        value = value.replace("-", "+").replace("_", "/")
        base64.b64decode(value, validate=True)
    except (AttributeError, ValueError, binascii.Error):
        return False
    return True
