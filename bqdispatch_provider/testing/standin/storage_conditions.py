"""Preconditions of calls on objects and buckets ("Request preconditions")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bqdispatch_provider.testing.standin.api import ApiError, Request
from bqdispatch_provider.testing.standin.storage_model import Bucket, StoredObject


@dataclass(frozen=True, slots=True)
class Conditions:
    """The preconditions of a call on an object; ``None``: no such condition.

    :param generation: generation of the live object; 0: there is no live object.
    :param not_generation: generation that the live object must not have.
    :param metageneration: metageneration of the live object.
    :param not_metageneration: metageneration that the live object must not have.
    """

    generation: int | None = None
    not_generation: int | None = None
    metageneration: int | None = None
    not_metageneration: int | None = None

    @classmethod
    def of(cls, request: Request, prefix: str = "if") -> Conditions:
        """Read the conditions from the parameters of a call.

        :param request: the call.
        :param prefix: prefix of the parameters' names: ``if``, or ``ifSource`` for the source of a copy.
        :raises ApiError: 400 if a parameter is not an integer.
        """
        if not request.query:
            return NO_CONDITIONS
        return cls(
            request.number(f"{prefix}GenerationMatch"),
            request.number(f"{prefix}GenerationNotMatch"),
            request.number(f"{prefix}MetagenerationMatch"),
            request.number(f"{prefix}MetagenerationNotMatch"),
        )

    def check(self, live: StoredObject | None, reading: bool = False) -> None:
        """Refuse the call unless the live object meets all conditions.

        Without a live object every condition fails except ``generation=0``.

        :param live: the live object; ``None``: there is none.
        :param reading: ``True`` if the call reads the object; a not-match condition then fails with 304.
        :raises ApiError: 412 or 304 if a condition fails.
        """
        generation, metageneration = (0, None) if live is None else (live.generation, live.metageneration)
        if self.generation not in (None, generation) or self.metageneration not in (None, metageneration):
            raise condition_failed()
        for unwanted, actual in ((self.not_generation, generation), (self.not_metageneration, metageneration)):
            if unwanted is not None and (live is None or unwanted == actual):
                raise condition_failed(304 if reading else 412)


NO_CONDITIONS: Final = Conditions()


def check_bucket(bucket: Bucket, conditions: Conditions, reading: bool = False) -> None:
    """Refuse a call on a bucket unless the bucket meets the metageneration conditions.

    :param bucket: the bucket.
    :param conditions: the conditions.
    :param reading: ``True`` if the call reads the bucket; a not-match condition then fails with 304.
    :raises ApiError: 412 or 304 if a condition fails.
    """
    if conditions.metageneration not in (None, bucket.metageneration):
        raise condition_failed()
    if conditions.not_metageneration == bucket.metageneration:
        raise condition_failed(304 if reading else 412)


def condition_failed(status: int = 412) -> ApiError:
    """Return the error of a precondition that is not met.

    :param status: HTTP status: 412, or 304 for a read.
    """
    return ApiError(status, "At least one of the pre-conditions you specified did not hold.", "conditionNotMet")
