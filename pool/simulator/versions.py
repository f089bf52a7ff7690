"""What CVAT servers of other versions do differently: each constant is where it changed."""

from __future__ import annotations

import re

Version = tuple[int, ...]

#: Access tokens; before, they are no credentials, and ask who one is: 404.
ACCESS_TOKENS: Version = (2, 48)
#: HEAD of a TUS upload that is complete: 404; before, 500.
TUS_COMPLETE_IS_404: Version = (2, 55)
#: A TUS create needs neither ``Origin`` nor ``X-Forwarded-Host``; before, 500 without both.
TUS_WITHOUT_ORIGIN: Version = (2, 56)
#: A bad remote file is reported in CVAT's words, and a scheme that it does not know is refused
#: at once; before, the import fails with the text of a bare exception.
DOWNLOAD_ERRORS: Version = (2, 65)
#: A request has its message as soon as it has failed; before, the first look can find the
#: traceback of which that is the last line.
MESSAGE_WITH_FAILURE: Version = (2, 70)
#: An import can be faster than the commit of the request that queued it, and then finds no
#: task; ``Upload-Start`` beforehand avoids that. A matter of luck there, certain here.
EARLY_IMPORT: Version = (2, 70)
EARLY_IMPORT_MENDED: Version = (2, 73)
#: Webhooks can ask for the ends of requests (``completed:request[…]``).
REQUEST_EVENTS: Version = (2, 73)


def read_version(text: str) -> Version:
    """``2.48`` or ``2.48.1`` as three numbers. Raises ``ValueError`` for anything else."""
    if not re.fullmatch(r"\d{1,4}\.\d{1,4}(\.\d{1,4})?", text):
        raise ValueError(f"{text!r} is no version of CVAT's; write it like 2.48 or 2.73.0")
    numbers = [int(part) for part in text.split(".")]
    return (*numbers, 0)[:3]
