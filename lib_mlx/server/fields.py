"""What request bodies of every dialect share: ranges of fields, refusals, ids and the form of an answer."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lib_mlx.errors import InvalidArgument, UnsupportedFeature
from lib_mlx.generation import Constraint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


def new_id(prefix: str) -> str:
    """Return a fresh object id such as `resp_0f3c…`."""
    return f"{prefix}_{secrets.token_hex(16)}"


def refuse(param: str, why: str, hint: str = "Remove it.") -> NoReturn:
    """Raise for an option that is well-formed but cannot be honoured."""
    raise UnsupportedFeature(f"{param!r} is not supported: {why}.", hint=hint, param=param)


def refuse_unless(param: str, value: Any, *accepted: Any, why: str) -> None:
    """Refuse `value` unless it is None or one of `accepted`, which ask for nothing beyond what happens anyway."""
    if value is not None and value not in accepted:
        refuse(param, why)


def constraint(form: Mapping[str, Any] | None, param: str) -> Constraint | None:
    """Return the form an answer must have; `form` is {"type": "text" | "json_object" | "json_schema", "schema": …}.

    Raises:
        InvalidArgument, UnsupportedFeature: it is not one of these.
    """
    kind = (form or {"type": "text"}).get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint("json_object", param=param)
    if kind != "json_schema":
        raise UnsupportedFeature(
            f"{param!r} cannot be {kind!r}.", hint="Use text, json_object or json_schema.", param=param
        )
    schema = (form or {}).get("schema")
    if not isinstance(schema, dict):
        raise InvalidArgument(f"{param!r} has no schema.", hint="Give a JSON Schema object.", param=param)
    return Constraint("json_schema", schema, param)
