"""Learn the vocabulary from the train split and write every split as token ids."""

from collections.abc import Iterator
from typing import Any

from rnnlm.stages import initial as initials
from rnnlm.stages.context import Context, Outcome, Work
from rnnlm.storage import Store


def run(context: Context) -> Outcome:
    """Do the stage."""
    from rnnlm.artifacts import CORPUS_FOLDER, TOKENS_FOLDER
    from rnnlm.data.tokenizing import tokenize_corpus

    experiment = context.experiment
    corpus = context.newest("ingest")
    initial = initials.find(context)
    given = None if initial is None else initial.tokenizer()
    inputs = {"corpus": corpus.digest} | ({} if given is None else {"tokenizer": given.digest})

    def distribute(*arguments: Any) -> Iterator[Any]:
        from rnnlm.integrations.ray_tokenize import tokenize_with_ray

        assert context.ray  # started only here: a small corpus needs no cluster
        return tokenize_with_ray(*arguments)

    def work(folder: Store) -> Work:
        with context.progress("tokenize") as progress:
            manifest = tokenize_corpus(
                corpus.store.child(CORPUS_FOLDER),
                folder.child(TOKENS_FOLDER),
                data=experiment.data,
                tokenizer=experiment.tokenizer,
                seed=experiment.seed,
                given=given,
                progress=progress,
                distribute=distribute,
            )
        return Work({"tokens": TOKENS_FOLDER}, {"manifest": manifest}, notes=describe(manifest))

    return context.run_stage("tokenize_corpus", experiment.settings("tokenize_corpus"), inputs, work)


def describe(manifest: dict[str, Any]) -> list[str]:
    """The vocabulary, and rows and tokens of each split."""
    vocabulary = manifest["tokenizer"]
    lines = [f"  vocabulary: {vocabulary['vocab_size']:,} entries ({vocabulary['kind']})"]
    for split, counts in manifest["splits"].items():
        tokens = counts["tokens"]
        shown = (
            ", ".join(f"{value:,} {name}" for name, value in tokens.items())
            if isinstance(tokens, dict)
            else f"{tokens:,}"
        )
        lines.append(f"  {split}: {counts['rows']:,} rows, tokens: {shown}")
    return lines
