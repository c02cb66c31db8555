"""Whether the content of a JSON file has the form in which it is written."""

from collections.abc import Mapping
from typing import Any, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

# A value of a JSON object that is no list and no object.
Scalar = str | int | float | bool | None


def fits(content: object, form: type) -> bool:
    """Whether JSON is an object with the keys of a form, and values of their types.

    Args:
        content: what was read.
        form: a TypedDict. Of objects within it no other keys are allowed; of `content` they are, so
            that a later version may add some.
    """
    if not isinstance(content, dict):
        return False
    known: Mapping[str, Any] = {
        name: content[name] for name in get_type_hints(form) if name in content
    }
    try:
        check_type(known, form, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError:
        return False
    return True
