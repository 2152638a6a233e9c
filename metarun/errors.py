"""What a user can put right, told in one line."""

from collections.abc import Callable, Mapping

# What torch says where memory is not there.
NO_MEMORY = (
    "DefaultCPUAllocator",
    "out of memory",
    "Storage size calculation overflowed",
    "integer multiplication overflow",
)
IMAGES, NOTHING = "images", ""  # what a way out may need, if no key


class UserError(ValueError):
    """Something the user asked for cannot be had; the text says what is wrong and what would work.

    The command line prints it as one line and exits with code 2; any other exception is a mistake
    of the program and keeps its traceback.
    """


class Unsuited(UserError):
    """`what` does not suit, and the `ways` out of it, the best first, each under what it needs: a
    key of the config, IMAGES or NOTHING."""

    def __init__(self, what: str, ways: Mapping[str, str]):
        super().__init__(f"{what}: {', or '.join(ways.values())}" if ways else what)
        self.what, self.ways = what, ways

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return UserError, (str(self),)

    def among(self, there: Callable[[str], bool]) -> "Unsuited":
        """The same with those ways alone whose need is `there`."""
        return Unsuited(self.what, {need: way for need, way in self.ways.items() if there(need)})


class InUse(UserError):
    """Another process has the run's folder; under resume=auto a sweep leaves the run to it."""


class DataChanged(UserError):
    """The data is not what it was when the run in the folder was started."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory that is not there was asked for, be it more than any machine has."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, as by Ctrl-C; a sweep it is part of stops with it."""
