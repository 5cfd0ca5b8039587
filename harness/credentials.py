"""Hides the passwords and tokens in addresses, wherever these are shown.

Whatever is printed, logged, recorded or put on a command line goes through :func:`shown`. Two kinds of files
hold complete addresses, and only their owner can read them: the spec of a trial, and the environment
variables of a Slurm job.
"""

from __future__ import annotations

import re

HIDDEN = "***"
SECRET_KEYS = r"password|passwd|passphrase|pwd|secret|token|access_token|api_?key|sig|signature|credentials?"

# scheme://user:password@, where the text begins with the address: the password may hold anything.
_ADDRESS = re.compile(r"""\A([\w.]+=)?(["']?[\w.+-]+:/{0,2}[^:/@\s]*):(.+)@""")
# user:password@ anywhere, whatever stands around it: a mistyped address has a password too.
_WITHIN = re.compile(r"([^\s:/@'\"=,;()\[\]{}<>]*):(?!/)([^ \t\r\n]+)@")
_USER_ALONE = re.compile(r"(https?://)[^\s/@:]+@")  # a token in the place of a user
_IN_QUERY = re.compile(rf"([?&;\s](?:ssl)?(?:{SECRET_KEYS})=)[^\s&;'\"#]+", re.IGNORECASE)


def shown(text: str) -> str:
    """Return a text for people: an address, a command or a message, without the secrets of its addresses."""
    if "@" in text:
        text = _ADDRESS.sub(rf"\1\2:{HIDDEN}@", text)
        text = _WITHIN.sub(rf"\1:{HIDDEN}@", text)
        text = _USER_ALONE.sub(rf"\1{HIDDEN}@", text)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", text) if "=" in text else text
