"""Arguments of the environment on the command line."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec


def parse_env_kwargs(words: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE words, or one JSON object.

    Raises:
        ValueError: A word is neither.
    """
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        try:
            found = json.loads(words[0])
        except ValueError as error:
            raise ValueError(f"{words[0]!r} is no JSON object: {error}") from None
        return dict(found)
    kwargs = {}
    for word in words:
        key, given, value = word.partition("=")
        if not given or not key.isidentifier():
            raise ValueError(f"got {word!r}, expected KEY=VALUE, or one JSON object")
        kwargs[key] = json_or_text(value)
    return kwargs


def json_or_text(text: str) -> Any:
    """Return JSON, or else the text itself; True, False and None as Python writes them, too."""
    names = {"True": True, "False": False, "None": None}
    try:
        return names[text] if text in names else json.loads(text)
    except ValueError:
        return text


def _words(kwargs: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in kwargs.items()]


EnvKwargs = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="KEY=VALUE [KEY=VALUE ...]",
        instance_from_str=parse_env_kwargs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=_words,
    ),
]
"""Arguments of the environment by name."""
