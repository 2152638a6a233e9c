"""Names that mean a split: one rule for folders, columns, lists and arrays.

`dev` is a validation split, as in data sets of texts. `eval` and `evaluation` mean none, since some
call the test so and others the validation; nor does Omniglot's `background`.
"""

from collections.abc import Iterable

from metarun.errors import UserError

NAMES = {
    "train": ("train", "training", "trn", "tr", "metatrain"),
    "val": ("val", "valid", "validation", "validate", "dev", "metaval", "metavalidation"),
    "test": ("test", "testing", "tst", "metatest"),
}
SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}


def folded(name: str) -> str:
    """The name as it is compared: in small letters, without blanks, hyphens and underscores."""
    return "".join(name.casefold().split()).replace("-", "").replace("_", "")


def split_named(name: str) -> str | None:
    """The split that the name means, "train", "val" or "test"; None when it means none."""
    return SPLIT_OF.get(folded(name))


def splits_named(names: Iterable[str]) -> dict[str, str]:
    """The name of each split, of names that all mean one; UserError when two mean the same."""
    found: dict[str, str] = {}
    for name in sorted(names):
        split = split_named(name)
        assert split is not None
        if split in found:
            raise UserError(
                f"{found[split]!r} and {name!r} both mean the split {split}: put them together"
            )
        found[split] = name
    return {split: found[split] for split in NAMES if split in found}
