"""What a user can put right, told in one line."""


class UserError(ValueError):
    """Something the user asked for cannot be had; the text says what is wrong and what would work.

    The command line prints it as one line and exits with code 2; any other exception is a mistake
    of the program and keeps its traceback.
    """


class InUse(UserError):
    """Another process has the run's folder; under resume=auto a sweep leaves the run to it."""


class DataChanged(UserError):
    """The data is not what it was when the run in the folder was started."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, as by Ctrl-C; a sweep it is part of stops with it."""
