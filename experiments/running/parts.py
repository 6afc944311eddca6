"""Parts of a setting: each is built once, from fields of the configuration that it declares and from no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from experiments.running.basis import Basis

S = TypeVar("S", bound="Basis")
T = TypeVar("T")


class Part(Generic[T]):
    """An attribute that is made when it is first read; all views of a setting share it.

    Its maker sees the declared fields alone, and who reads it must have declared them too, whether it is made already
    or not: what a stage uses is so in its identity.
    """

    def __init__(self, fields: tuple[str, ...], make: Callable[..., T]) -> None:
        self.fields, self.make, self.__doc__ = fields, make, make.__doc__

    def __get__(self, setting: Basis, owner: type[Basis]) -> T:
        seen, name = setting.only(*self.fields), self.make.__name__
        if name not in setting.made:
            setting.made[name] = self.make(seen)
        found: T = setting.made[name]
        return found


def made_from(*fields: str) -> Callable[[Callable[[S], T]], Part[T]]:
    """Decorate the maker of a part that depends on these fields of the configuration."""
    return lambda make: Part(fields, make)
