"""JSON and texts that somebody else wrote: read, and shown in a line of ours. Standard library only."""

import json


def parse_json(text, place):
    """The object of a JSON text, str or bytes, as a dict. Raises ValueError, one line, where it holds none."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"{place}: not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{place}: not JSON: {shown(str(error))}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{place}: not a JSON object")
    return found


def shown(text, most=200):
    """Somebody else's text in a line of ours: what cannot be printed is escaped, what is beyond `most` left out."""
    whole = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return whole + ("..." if len(text) > most else "")
