"""Names of options in texts."""

import dataclasses
import re
from typing import cast

from ffcv_train.config.schema import RunConfig

OPTIONS = {
    f"{section.name}.{option.name}"
    for section in dataclasses.fields(RunConfig)
    for option in dataclasses.fields(cast(type, section.type))
}
_SECTIONS = "|".join(section.name for section in dataclasses.fields(RunConfig))


def options_in(text: str) -> list[tuple[str, str]]:
    """Every `section.key` in `text`, pages such as data.md excepted, with its value where `=` gives one, else ""."""
    return [(key, value) for key, value in re.findall(rf"\b((?:{_SECTIONS})\.(?!md\b)\w+)(?:=([\w.,/]*\w))?", text)]
