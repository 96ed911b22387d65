"""AlignAtt's BLEU and average lagging with the bundled model, for the heads that say where a token looks.

Run by `make bench`; `--skip` and `--sentences` choose other sentences than the first ones, and `--words` says how many
source words are held back. The average lagging is that of Ma et al. 2019 (arXiv:1810.08398, equation 8), in words: how
many source words a target word comes behind an ideal translator who writes all the time.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sacrebleu
from rich.console import Console
from rich.table import Table
from sidelight.client import AlignAtt, AsyncClient, AwaitingSource, Capture, Decoding, Finished, Step
from sidelight.client.cli.demo import bundled_server
from sidelight.client.views import count_complete

DATA = Path(__file__).parents[3] / "shared" / "data" / "tatoeba-en-de.dev.tsv"
SENTENCES, UNDER_WAY, WORDS = 100, 16, (1, 2, 3)
# By their names in the table: the fields of the policy. The bundled model has 3 layers of 4 heads.
HEADS: dict[str, dict[str, Any]] = {
    "the preset, which is the default": {},
    "all heads of the last two layers": {"layers": (1, 2)},
    "all heads of the last layer": {"layers": (2,)},
    "head 2 of layer 1": {"heads": ((1, 2),)},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=SENTENCES, help=f"how many; {SENTENCES} by default")
    parser.add_argument("--skip", type=int, default=0, help="how many sentences are left out before; 0 by default")
    parser.add_argument("--words", type=int, nargs="+", default=WORDS, help="the numbers of words that are held back")
    options = parser.parse_args()
    chosen = slice(options.skip, options.skip + options.sentences)
    if not DATA.exists():
        print(f"skipped: {DATA} is not here")
        return 0
    rows = [line.split("\t") for line in DATA.read_text(encoding="utf-8").splitlines()[chosen]]
    with bundled_server() as (_, address):
        asyncio.run(_report(address, rows, options.words))
    return 0


async def _report(address: str, rows: list[list[str]], held_back: Sequence[int]) -> None:
    """Prints BLEU and average lagging of each setting."""
    sources = [row[0] for row in rows]
    longest = max(map(len, rows))
    references: Any = [[row[n] if n < len(row) else None for row in rows] for n in range(1, longest)]
    names = [f"{words} held back: {figure}" for words in held_back for figure in ("BLEU", "lag")]
    table = Table(f"{len(rows)} sentences", *names)
    under_way = asyncio.Semaphore(UNDER_WAY)
    async with AsyncClient(address) as client:

        async def translate(source: str, policy: AlignAtt) -> tuple[str, list[int]]:
            async with under_way:
                return await _translate(client, source, policy)

        for name, fields in HEADS.items():
            cells: list[str] = []
            for words in held_back:
                policy = AlignAtt(words=words, **fields)
                results = await asyncio.gather(*(translate(source, policy) for source in sources))
                lags = [_average_lagging(source, read) for source, (_, read) in zip(sources, results, strict=True)]
                bleu = sacrebleu.corpus_bleu([text for text, _ in results], references).score
                cells += [f"{bleu:.1f}", f"{statistics.mean(lags):.2f}"]
            table.add_row(name, *cells)
        texts = [(await client.attribute(source).result()).text for source in sources]
    lag = statistics.mean(len(source.split()) for source in sources)
    bleu = sacrebleu.corpus_bleu(texts, references).score
    Console(width=140).print(table)
    print(f"offline: BLEU {bleu:.1f}, average lagging {lag:.2f}")


async def _translate(client: AsyncClient, source: str, policy: AlignAtt) -> tuple[str, list[int]]:
    """Sends a source word by word, each when the server waits for it.

    Returns the target, and for each target word how many source words had been sent when the word was complete.
    """
    words = source.split()
    text, num_sent = "", 1
    read: list[int] = []
    async with client.follow(policy=policy, decoding=Decoding(), capture=Capture(none=True)) as stream:
        await stream.add_source(words[0])
        async for event in stream:
            if isinstance(event, Step):
                text += event.text
                num_words = len(text[: count_complete(text)].split())
                read += [num_sent] * (num_words - len(read))
            elif isinstance(event, AwaitingSource):
                if num_sent < len(words):
                    await stream.add_source(f" {words[num_sent]}")
                    num_sent += 1
                else:
                    await stream.complete_source()
            elif isinstance(event, Finished):
                read += [num_sent] * (len(text.split()) - len(read))
    return text, read


def _average_lagging(source: str, read: list[int]) -> float:
    """The average lagging of one sentence. `read` is as `_translate` returns it."""
    num_source = len(source.split())
    rate = len(read) / num_source
    num_counted = next((index + 1 for index, count in enumerate(read) if count >= num_source), len(read))
    return statistics.mean(count - index / rate for index, count in enumerate(read[:num_counted]))


if __name__ == "__main__":
    raise SystemExit(main())
