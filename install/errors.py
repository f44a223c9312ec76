"""The two ways in which the set-up says no.

SetupError (brim.errors.NoResource, exit 6)   the set-up cannot be done here and now
└── DigestMismatch                            a file is not the one that the lock names
"""

from __future__ import annotations

from brim.errors import NoResource


class SetupError(NoResource):
    word = "setup"


class DigestMismatch(SetupError):
    word = "digest"
